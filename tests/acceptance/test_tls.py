"""Frontends with TLS, and frontends that cannot use their files."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.clients import body
from tests.harness.processes import Cluster, until


@pytest.mark.parametrize("processes", ["1", "2"])
def test_tls_serves_own_certificate(cluster: Cluster, certificate: tuple[Path, Path], processes: str) -> None:
    cert, key = certificate
    cluster.broker()
    cluster.worker()
    cluster.frontend("--tls-cert", str(cert), "--tls-key", str(key), "--processes", processes)
    trusted = ssl.create_default_context(cafile=str(cert))
    url = f"https://127.0.0.1:{cluster.port}"

    def answered() -> Any:
        try:
            with httpx.Client(verify=trusted) as client:
                return client.post(f"{url}/v1/embeddings", json=body("a")).status_code == 200
        except httpx.TransportError:
            return False

    until(answered, what="an answer over TLS")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{cluster.port}/v2/health/live")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--api-keys", "/nowhere/keys.toml"), "/nowhere/keys.toml cannot be used"),
        (("--tls-cert", "/nowhere/cert.pem", "--processes", "2"), "the certificate /nowhere/cert.pem and the key"),
        (("--tls-key", "/nowhere/key.pem"), "--tls-key is given without --tls-cert"),
    ],
)
def test_unusable_file_ends_start_with_one_line(cluster: Cluster, flags: tuple[str, ...], reason: str) -> None:
    program = cluster.frontend(*flags)
    assert program.wait() == 2
    assert reason in program.output
    assert program.output.count("\n") == 1


def test_pass_phrase_ends_start_without_prompt(
    cluster: Cluster, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-in", str(key), "-aes128", "-passout", "pass:abcd", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    program = cluster.frontend("--tls-cert", str(cert), "--tls-key", str(locked))
    assert program.wait() == 2
    assert f"the key {locked} cannot be used" in program.output
    assert program.output.count("\n") == 1
