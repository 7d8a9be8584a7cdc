"""Fixtures that more than one kind of test needs."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.peers import Peer
from tests.harness.processes import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Processes of the three kinds, as a test starts them; none is left afterwards."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Peers to be closed."""
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.close()
