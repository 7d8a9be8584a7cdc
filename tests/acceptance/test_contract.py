"""Every row of the contract (tests/acceptance/contract/), on live servers."""

import hashlib
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.contract import embeddings, others
from tests.acceptance.contract.row import Row
from tests.processes import ROOT, Cluster, until
from tests.servers import Server

ROWS: list[Row] = [*embeddings.ROWS, *others.ROWS]


def entry(name: str, key: str, line: str) -> str:
    """A key in the file."""
    return f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{line}\n'


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of each kind."""
    real = Server(tmp_path_factory.mktemp("real"))
    fake, locked, empty = (Cluster(tmp_path_factory.mktemp(name)) for name in ("f", "l", "e"))
    keys = locked.folder / "keys.toml"
    keys.write_text(
        entry("one", "vm-contract", "jobs_in_flight = 10") + entry("root", "vm-contract-admin", "admin = true")
    )
    for cluster, flags in ((fake, ()), (locked, ("--api-keys", str(keys)))):
        cluster.broker()
        cluster.worker()
        cluster.frontend(*flags)
        until(lambda cluster=cluster: is_ready(cluster), what="a worker")  # type: ignore[misc]
    empty.broker()
    empty.frontend("--broker-grace-s", "0.2")
    until(lambda: empty.health().get("broker") == "connected", what="the empty server")
    yield {"real": real.url, "fake": fake.url, "locked": locked.url, "empty": empty.url}
    real.program.close()
    for cluster in (fake, locked, empty):
        cluster.close()


def is_ready(cluster: Cluster) -> bool:
    """Whether a worker is there; needs no key."""
    try:
        return httpx.get(f"{cluster.url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_table_is_one_of_at_least_150_different_behaviours() -> None:
    names = [row.name for row in ROWS]
    assert len(names) >= 150
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(row: Row, urls: dict[str, str]) -> None:
    row.hold(row.ask(urls[row.server]))


def test_every_difference_is_documented() -> None:
    lines = (ROOT / "docs/differences.md").read_text().splitlines()
    documented = {line.split("|")[1].strip() for line in lines if line.startswith("| ")}
    assert {row.differs for row in ROWS if row.differs} - documented == set()
