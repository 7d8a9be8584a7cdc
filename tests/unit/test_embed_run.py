"""`scripts/embed`: how long a run waits for its server. Needs no server, and passes no time."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from embed_client import Client, Fault, Model, RequestError  # noqa: E402  after the path is set
from embed_errors import AwayError  # noqa: E402
from embed_inputs import Part  # noqa: E402
from embed_options import Options  # noqa: E402
from embed_part import OpenPart  # noqa: E402
from embed_plan import Answer, Manifest  # noqa: E402
from embed_progress import Progress  # noqa: E402
from embed_run import Run  # noqa: E402
from embed_store import Store  # noqa: E402

MODEL = Model("m", 1, "r")


class FakeClient(Client):
    """Fails with 503 at first; each failure takes `failure_s` of the clock."""

    def __init__(self, clock: SimpleNamespace, failures: int, list_failures: int, failure_s: float) -> None:
        super().__init__("http://127.0.0.1", "", {})
        self.clock, self.failure_s = clock, failure_s
        self.failures, self.list_failures = failures, list_failures

    def fail(self) -> None:
        """Pass the time of a failure, and raise it."""
        self.clock.now += self.failure_s
        raise RequestError(503, Fault("full"))

    async def list_models(self) -> list[Model]:
        """Return the model."""
        self.list_failures -= 1
        if self.list_failures >= 0:
            self.fail()
        return [MODEL]

    async def embed(self, model: Model, rows: Sequence[int], texts: Sequence[str], values: int) -> Answer:
        """Return vectors of 1."""
        self.failures -= 1
        if self.failures >= 0:
            self.fail()
        return make_answer(rows)


def make_answer(rows: Sequence[int]) -> Answer:
    return Answer(list(rows), np.ones(len(rows), "<f4").tobytes(), 1)


def make_part(number: int) -> Part:
    return Part(number, 2 * number, ["a", "b"], {}, pa.table({"id": [2 * number, 2 * number + 1]}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a clock of the run that stands still, and let the run not pause."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("embed_run.time", clock)
    monkeypatch.setattr("embed_run.choose_delay_s", lambda *_: 0.0)
    monkeypatch.setattr("embed_run.COMMIT_S", 0.001)
    return clock


def run(folder: Path, clock: SimpleNamespace, client: FakeClient, *, journal: bool = False) -> Store:
    """Run with a complete first part, which takes 400 s to read, and perhaps a full journal of the second."""
    options = Options(inputs=("a",), output=folder, format="parquet", patience_s=300.0)
    manifest = Manifest(inputs=[], options={}, model="m", revision="r", dimension=1, part_rows=2)
    store = Store(folder)

    def read() -> Iterator[Part]:
        yield make_part(0)
        clock.now += 400
        yield make_part(1)

    with store.lock():
        for number in range(1 + journal):
            part = OpenPart(make_part(number), 1)
            part.add(make_answer([0, 1]))
            part.unsaved.append(make_answer([0, 1]))
            store.save_rows(part, 1)
            if not number:
                store.write_part(part, "float32")
        asyncio.run(Run(options, manifest, MODEL, store, client, Progress("quiet")).run(read()))
    return store


def test_patience_starts_with_the_first_request(tmp_path: Path, clock: SimpleNamespace) -> None:
    store = run(tmp_path / "out", clock, FakeClient(clock, failures=3, list_failures=0, failure_s=90))
    assert len(store.list_parts()) == 2


def test_patience_starts_with_the_first_commit(tmp_path: Path, clock: SimpleNamespace) -> None:
    client = FakeClient(clock, failures=0, list_failures=3, failure_s=90)
    store = run(tmp_path / "out", clock, client, journal=True)
    assert len(store.list_parts()) == 2


@pytest.mark.parametrize(("failures", "list_failures"), [(99, 0), (0, 99)])
def test_patience_ends_while_requests_fail(
    tmp_path: Path, clock: SimpleNamespace, failures: int, list_failures: int
) -> None:
    client = FakeClient(clock, failures=failures, list_failures=list_failures, failure_s=90)
    with pytest.raises(AwayError, match="has not answered for 300 s"):
        run(tmp_path / "out", clock, client)
    # The commit at the end of the run is one more.
    assert (failures - client.failures, list_failures - client.list_failures) in ((4, 0), (1, 5))
