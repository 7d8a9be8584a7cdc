"""Every row of the contract (tests/acceptance/contract/), sent to live servers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.contract import files, inputs, options, others
from tests.acceptance.contract.described import check_description
from tests.acceptance.contract.row import Row
from tests.acceptance.contract.servers import start_servers
from tests.harness.processes import ROOT

ROWS: list[Row] = [*inputs.ROWS, *options.ROWS, *others.ROWS, *files.ROWS]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a server of each kind, and give its URL by name."""
    with start_servers(tmp_path_factory.mktemp("servers")) as urls:
        yield urls


@pytest.fixture(scope="module")
def descriptions(urls: dict[str, str]) -> dict[str, Any]:
    """Give the description of each server's API by name."""
    return {name: httpx.get(f"{url}/openapi.json").json() for name, url in urls.items()}


def test_contract_has_at_least_150_distinct_rows() -> None:
    names = [row.name for row in ROWS]
    assert len(names) >= 150
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(row: Row, urls: dict[str, str], descriptions: dict[str, Any]) -> None:
    answer = row.send(urls[row.server])
    row.check_answer(answer)
    check_description(row, answer, descriptions[row.server])


def test_differences_from_ovms_are_documented_and_tested() -> None:
    lines = (ROOT / "docs/differences.md").read_text().splitlines()
    documented = {line.split("|")[1].strip() for line in lines if line.startswith("| ")}
    assert {row.differs for row in ROWS if row.differs} == documented - {"what"}
