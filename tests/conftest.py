"""Fixtures that more than one kind of test needs."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.peers import Peer
from tests.harness.processes import Cluster


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared facts and data, beside the checkout; VECMILL_SHARED names another place."""
    folder = Path(os.environ.get("VECMILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        message = f"{folder}/data is missing: golden vectors and STS-B come from there"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder


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
