"""A short run of scripts/fuzz; .ci/run has a longer one."""

import subprocess

from tests.harness.processes import ROOT


def test_every_fuzzed_request_is_answered_without_500() -> None:
    command = [str(ROOT / "scripts/fuzz"), "--examples", "10", "--connections", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.endswith("\n0 faults\n")
