"""Every row of the contract (tests/acceptance/contract/), on live servers."""

from collections.abc import Iterator

import pytest

from tests.acceptance.contract import inputs, options, others
from tests.acceptance.contract.described import agree
from tests.acceptance.contract.row import Row
from tests.acceptance.contract.servers import servers
from tests.harness.processes import ROOT

ROWS: list[Row] = [*inputs.ROWS, *options.ROWS, *others.ROWS]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of each kind."""
    with servers(tmp_path_factory.mktemp("servers")) as urls:
        yield urls


def test_table_is_one_of_at_least_150_different_behaviours() -> None:
    names = [row.name for row in ROWS]
    assert len(names) >= 150
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(row: Row, urls: dict[str, str]) -> None:
    answer = row.ask(urls[row.server])
    row.hold(answer)
    agree(row, answer)


def test_every_difference_is_documented_and_every_documented_one_is_tested() -> None:
    lines = (ROOT / "docs/differences.md").read_text().splitlines()
    documented = {line.split("|")[1].strip() for line in lines if line.startswith("| ")}
    assert {row.differs for row in ROWS if row.differs} == documented - {"what"}
