"""Fixtures for several levels of tests."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.peers import Peer
from tests.harness.processes import Cluster

# A shell ignores SIGINT for background jobs, and nohup ignores SIGHUP. Processes under test must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a cluster whose processes are killed after the test."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Return the paths of a certificate for 127.0.0.1 and of its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Return a list of peers that are closed after the test."""
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.close()
