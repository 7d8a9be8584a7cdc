"""`scripts/mutants`: plant a bug in a copy of the tree, run the tests that should find it, and repeat for each bug.

The bugs are in `planted_bugs.py` and `model_bugs.py`. With an argument, only bugs with this text in their name or file
are planted; `--shard NUMBER` plants every eighth bug. The exit status is 1 if the tests miss a bug. A row with a text
that does not occur exactly once in the code is an error, so that the list follows the code.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model_bugs import MODEL_BUGS
from planted_bugs import BUGS as PLANTED_BUGS
from planted_bugs import ROOT, Bug

#: Parts of the list for `--shard`. A part takes about 5 minutes on 2 cores.
SHARDS = 8
BUGS = [*PLANTED_BUGS, *(Bug(bug.name, bug.path, bug.right, bug.wrong, bug.arguments) for bug in MODEL_BUGS)]


def run_tests(bug: Bug) -> tuple[int, float, str]:
    """Run the tests with the bug planted; return pytest's exit status (1 if a test failed), seconds and output."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vecmill-mutant-") as name:
        copy = Path(name)
        for folder in ("broker", "docs", "frontend", "scripts", "tests", "workers"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / bug.path
        path.write_text(path.read_text().replace(bug.right, bug.wrong))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "600"]
        # CI would raise the number of examples.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        if bug.path.startswith("workers/"):
            # Loading all plugins that are installed takes 3 s of CPU time, longer than most tests of models.
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            command += ["-p", "pytest_timeout"]
        command += bug.tests
        done = subprocess.run(
            command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    return done.returncode, time.monotonic() - started, done.stdout


def main() -> None:
    """Plant every bug; exit with status 1 if one is missed, or if the tests fail without a bug."""
    texts = sys.argv[1:]
    is_shard = texts[:1] == ["--shard"]
    bugs = [bug for bug in BUGS if is_shard or all(text in f"{bug.path} {bug.name}" for text in texts)]
    for bug in bugs:
        if (number := (ROOT / bug.path).read_text().count(bug.right)) != 1:
            sys.exit(f"{bug.name}: this text is {number} times in {bug.path}, but must be once: {bug.right}")
    if not bugs:
        sys.exit(f"no planted bug has {texts} in its name or file")
    if is_shard:
        bugs = bugs[int(texts[1]) % SHARDS :: SHARDS]
    for path in dict.fromkeys(bug.path.partition("/")[0] for bug in bugs):
        files = {test for bug in bugs for test in bug.tests if test.startswith("tests/") and bug.path.startswith(path)}
        file = next(bug.path for bug in bugs if bug.path.startswith(path))
        status, _, output = run_tests(Bug("none", file, "", "", tuple(sorted(files))))
        if status != 0:
            sys.exit(f"{output}\npytest ends with status {status} without a planted bug in {path}")
    missed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, (status, seconds, _) in zip(bugs, pool.map(run_tests, bugs), strict=True):
            found = status == 1
            missed += not found
            print(f"{'found ' if found else 'MISSED'} {seconds:5.1f} s  {bug.name}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs found")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
