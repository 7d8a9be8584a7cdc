"""Cutting batches into micro-batches, and the threads that run them."""

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.protocol import Lane
from tests.fake_worker import FakeBackend, Fakery, vector
from workers.backend import Ids, Vectors
from workers.pipeline import MAX_OVERTAKES, Line, Pipeline, Work, cut


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000), st.integers(1, 4))
def test_cuts_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, streams: int) -> None:
    cuts = cut(lengths, budget, streams)
    assert sorted(row for rows in cuts for row in rows) == list(range(len(lengths)))
    for rows in cuts:
        padded = max(lengths[row] for row in rows) * len(rows)
        assert padded <= budget or len(rows) == 1


def test_similar_lengths_go_together_and_the_longest_first() -> None:
    assert cut([3, 50, 4, 49], 100, 1) == [[1, 3], [2, 0]]


def test_few_rows_are_spread_over_the_streams() -> None:
    assert [len(rows) for rows in cut([10] * 8, 1000, 2)] == [4, 4]


def batch(*texts: str, lane: Lane = Lane.BULK) -> Work:
    payloads = [text.encode() for text in texts]
    lengths = wire.pack_u32(map(len, payloads))
    return Work(wire.Batch(1, 1, "fake", bytes(len(texts)), lengths, lane), b"".join(payloads))


def run(work: Work) -> Work:
    """The batch through a pipeline of its own."""
    woken = threading.Event()
    pipeline = Pipeline(FakeBackend(), woken.set)
    pipeline.start()
    pipeline.submit(work)
    assert woken.wait(10)
    pipeline.stop()
    return pipeline.finished.popleft()


def test_vectors_stand_in_the_order_of_the_jobs() -> None:
    texts = ["bb", "a", "cccc", "", "ddd"]
    work = run(batch(*texts))
    assert not work.error
    assert work.tokens == [2, 1, 4, 1, 3]
    assert [row.tolist() for row in work.vectors] == [vector(text or "\0").tolist() for text in texts]


def test_refused_job_has_no_row_and_its_neighbours_do() -> None:
    work = run(batch("a", "x" * 65, "b"))
    (failure,) = work.failures
    assert (failure.position, failure.code) == (1, ErrorCode.TOO_LONG)
    assert failure.text == "Input length 65 longer than allowed 64"
    assert [row.tolist() for row in work.vectors] == [vector("a").tolist(), vector("b").tolist()]


def test_batch_of_refused_jobs_only_is_finished() -> None:
    work = run(batch("x" * 65))
    assert len(work.failures) == 1
    assert work.vectors.shape[0] == 0


@pytest.mark.parametrize("work", [batch("a", "raise"), Work(wire.Batch(1, 1, "m", b"\0", wire.pack_u32([1])), b"\xff")])
def test_exception_fails_the_batch_and_not_the_thread(work: Work) -> None:
    assert run(work).error


@pytest.mark.parametrize("texts", [("one", "nan"), ("other", "short"), ("other", "third", "short")])
def test_vectors_of_another_shape_or_not_finite_fail_the_batch(texts: tuple[str, ...]) -> None:
    assert run(batch(*texts)).error


class HeldBackend(FakeBackend):
    """Runs nothing before it has tokenised "last"."""

    def __init__(self) -> None:
        super().__init__(Fakery(requests=1))
        self._all_there = threading.Event()

    def tokenise(self, texts: Sequence[str]) -> list[Ids]:
        if "last" in texts:
            self._all_there.set()
        return super().tokenise(texts)

    def infer(self, request: int, ids: Sequence[Ids]) -> Vectors:
        assert self._all_there.wait(10)
        return super().infer(request, ids)


def test_interactive_batch_overtakes_the_bulk_ones_that_have_not_begun() -> None:
    finished = threading.Semaphore(0)
    pipeline = Pipeline(HeldBackend(), finished.release)
    pipeline.start()
    for text in ("first", "second", "urgent", "third", "last"):
        pipeline.submit(batch(text, lane=Lane.INTERACTIVE if text == "urgent" else Lane.BULK))
    for _ in range(5):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    texts = [bytes(work.frame).decode() for work in pipeline.finished]
    assert [text for text in texts if text != "urgent"] == ["first", "second", "third", "last"]
    assert texts.index("urgent") <= 1


class SlowReader(FakeBackend):
    """Tokenises nothing but its first batch before it is told to."""

    def __init__(self) -> None:
        super().__init__(Fakery(requests=1))
        self.go_on = threading.Event()
        self.read: list[str] = []

    def tokenise(self, texts: Sequence[str]) -> list[Ids]:
        if self.read:
            assert self.go_on.wait(10)
        self.read += texts
        return super().tokenise(texts)


def test_interactive_batch_is_tokenised_before_bulk_ones() -> None:
    backend, finished = SlowReader(), threading.Semaphore(0)
    pipeline = Pipeline(backend, finished.release)
    pipeline.start()
    for text in ("first", "second", "third", "urgent"):
        pipeline.submit(batch(text, lane=Lane.INTERACTIVE if text == "urgent" else Lane.BULK))
    backend.go_on.set()
    for _ in range(4):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.read.index("urgent") < backend.read.index("third")


def test_bulk_item_is_overtaken_so_often_and_no_more() -> None:
    line: Line[str] = Line()
    line.put(Lane.BULK, "bulk")
    for number in range(2 * MAX_OVERTAKES):
        line.put(Lane.INTERACTIVE, f"urgent {number}")
    line.end()
    order = list(iter(line.get, None))
    assert order.index("bulk") in (MAX_OVERTAKES, MAX_OVERTAKES - 1)
    assert [item for item in order if item != "bulk"] == [f"urgent {one}" for one in range(2 * MAX_OVERTAKES)]


def test_token_ids_are_taken_as_they_are() -> None:
    ids = wire.pack_u32([104, 105])
    work = run(Work(wire.Batch(1, 1, "fake", bytes([1]), wire.pack_u32([len(ids)])), ids))
    assert work.vectors[0].tolist() == vector("hi").tolist()
