"""Cutting batches into micro-batches, and the threads that run them."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Lane, Option
from tests.harness.fake_worker import FakeBackend, Fakery, vector
from workers.engine.backend import Ids, Vectors
from workers.engine.batch_inputs import BatchInputs, truncate_ids
from workers.engine.pipeline import MAX_OVERTAKES, LanePriorityQueue, Pipeline, Work, split_micro_batches


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000), st.integers(1, 4))
def test_cuts_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, streams: int) -> None:
    micro_batches = split_micro_batches(lengths, budget, streams)
    assert sorted(row for rows in micro_batches for row in rows) == list(range(len(lengths)))
    for rows in micro_batches:
        padded = max(lengths[row] for row in rows) * len(rows)
        assert padded <= budget or len(rows) == 1


def test_similar_lengths_go_together_and_the_longest_first() -> None:
    assert split_micro_batches([3, 50, 4, 49], 100, 1) == [[1, 3], [2, 0]]


def test_few_rows_are_spread_over_the_streams() -> None:
    assert [len(rows) for rows in split_micro_batches([10] * 8, 1000, 2)] == [4, 4]


def batch(*texts: str, lane: Lane = Lane.BULK, options: bytes = b"") -> Work:
    payloads = [text.encode() for text in texts]
    lengths = wire.pack_u32(map(len, payloads))
    return Work(wire.Batch(1, 1, "fake", bytes(len(texts)), lengths, lane, options), b"".join(payloads))


def read(work: Work) -> BatchInputs:
    """What was read of a batch."""
    assert work.inputs
    return work.inputs


def run(work: Work, backend: FakeBackend | None = None) -> Work:
    """The batch through a pipeline of its own."""
    woken = threading.Event()
    pipeline = Pipeline(backend or FakeBackend(), woken.set)
    pipeline.start()
    pipeline.submit(work)
    assert woken.wait(10)
    pipeline.stop()
    return pipeline.finished.popleft()


def test_vectors_stand_in_the_order_of_the_jobs() -> None:
    texts = ["bb", "a", "cccc", "", "ddd"]
    work = run(batch(*texts))
    assert not work.error
    assert read(work).tokens == [2, 1, 4, 1, 3]
    assert [row.tolist() for row in work.vectors] == [vector(text or "\0").tolist() for text in texts]


def test_refused_job_has_no_row_and_its_neighbours_do() -> None:
    work = run(batch("a", "x" * 65, "b"))
    (failure,) = read(work).failures
    assert (failure.position, failure.code) == (1, ErrorCode.TOO_LONG)
    assert failure.text.startswith("Input length 65 longer than allowed 64")
    assert [row.tolist() for row in work.vectors] == [vector("a").tolist(), vector("b").tolist()]


def test_batch_of_refused_jobs_only_is_finished() -> None:
    work = run(batch("x" * 65))
    assert len(read(work).failures) == 1
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

    def tokenise_texts(self, texts: Sequence[str]) -> list[Ids]:
        if "last" in texts:
            self._all_there.set()
        return super().tokenise_texts(texts)

    def run_inference(self, request: int, ids: Sequence[Ids]) -> Vectors:
        assert self._all_there.wait(10)
        return super().run_inference(request, ids)


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

    def tokenise_texts(self, texts: Sequence[str]) -> list[Ids]:
        if self.read:
            assert self.go_on.wait(10)
        self.read += texts
        return super().tokenise_texts(texts)


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
    line: LanePriorityQueue[str] = LanePriorityQueue()
    line.put(Lane.BULK, "bulk")
    for number in range(2 * MAX_OVERTAKES):
        line.put(Lane.INTERACTIVE, f"urgent {number}")
    line.put_end()
    order = list(iter(line.get, None))
    assert order.index("bulk") in (MAX_OVERTAKES, MAX_OVERTAKES - 1)
    assert [item for item in order if item != "bulk"] == [f"urgent {one}" for one in range(2 * MAX_OVERTAKES)]


def test_token_ids_are_taken_as_they_are() -> None:
    ids = wire.pack_u32([104, 105])
    work = run(Work(wire.Batch(1, 1, "fake", bytes([1]), wire.pack_u32([len(ids)])), ids))
    assert work.vectors[0].tolist() == vector("hi").tolist()


# --- options ---------------------------------------------------------------------------------------------------------


def test_frame_of_vectors_alone_is_their_own_memory() -> None:
    work = run(batch("a", "b"))
    frame, sizes = work.build_frame()
    assert sizes == b""
    assert bytes(frame) == work.vectors.tobytes()
    work.vectors[0, 0] = 7
    assert bytes(frame) == work.vectors.tobytes()


def test_token_ids_stand_among_vectors_in_the_order_of_the_jobs() -> None:
    tokenise = int(Option.TOKENISE)
    work = run(batch("ab", "x" * 65, "c", "y" * 70, options=bytes([tokenise, 0, 0, tokenise])))
    frame, sizes = work.build_frame()
    ids, row, long = wire.split_frame(frame, wire.unpack_u32(sizes))
    assert list(wire.unpack_u32(bytes(ids))) == [97, 98]
    assert np.frombuffer(row, "<f4").tolist() == vector("c").tolist()
    assert len(long) == 4 * 70
    assert read(work).tokens == [2, 65, 1, 70]


def test_batch_of_token_ids_alone_runs_no_inference() -> None:
    work = run(batch("raise", options=bytes([Option.TOKENISE])))
    assert not work.error
    assert (work.inference_s, work.padding) == (0, 0)
    assert bytes(work.build_frame()[0]) == wire.pack_u32(map(ord, "raise"))


def test_inputs_are_cut_on_the_side_that_is_asked_for() -> None:
    text = "".join(chr(97 + number % 26) for number in range(70))
    work = run(
        batch(text, text, "brief", options=bytes([Option.TRUNCATE_END, Option.TRUNCATE_START, Option.TRUNCATE_END]))
    )
    assert (read(work).tokens, read(work).truncated) == ([64, 64, 5], [6, 6, 0])
    assert [row.tolist() for row in work.vectors] == [vector(one).tolist() for one in (text[:64], text[6:], "brief")]


class Normalising(FakeBackend):
    """Says that it has halved every vector."""

    def get_divisors(self, request: int) -> Vectors | None:
        rows = len(self._outputs[request])
        return np.full((rows, 1), 2, np.float32)

    def run_inference(self, request: int, ids: Sequence[Ids]) -> Vectors:
        self._outputs[request] = super().run_inference(request, ids)
        return self._outputs[request]


def test_normalisation_is_undone_for_those_who_ask() -> None:
    texts = ["a", "bbb", "cc", "dddd"]
    work = run(batch(*texts, options=bytes([0, Option.RAW, 0, Option.RAW])), Normalising())
    assert [row.tolist() for row in work.vectors] == [
        (vector(text) * factor).tolist() for text, factor in zip(texts, (1, 2, 1, 2), strict=True)
    ]


def test_padding_is_what_micro_batches_run_beside_their_jobs() -> None:
    assert run(batch("aaaa", "bb", "c")).padding == 1  # the first alone, then the others
    assert run(batch("aaaa", "bbbb")).padding == 0


def test_inference_time_goes_from_the_first_start_to_the_last_end() -> None:
    """Not the sum: micro-batches run side by side."""
    work = batch("a", "b", "c")
    work.expect_micro_batches([[0], [1], [2]], [1, 1, 1])
    assert not work.finish_micro_batch(2.0, 3.0, "")
    assert not work.finish_micro_batch(1.0, 5.0, "")
    assert work.finish_micro_batch(3.0, 4.0, "")
    assert work.inference_s == 4.0
    assert run(batch("a")).inference_s > 0


# --- truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "at_start", "cut_ids"),
    [
        ([1, 7, 8, 2], False, [1, 7, 8, 2]),
        ([1, 7, 8, 9, 10, 2], False, [1, 7, 8, 2]),
        ([1, 7, 8, 9, 10, 2], True, [1, 9, 10, 2]),
        ([7, 8, 9, 10, 11], False, [7, 8, 9, 10]),
        ([7, 8, 9, 10, 11], True, [8, 9, 10, 11]),
        ([1, 7, 8, 9, 10], False, [1, 7, 8, 9]),
        ([1, 7, 8, 9, 10], True, [1, 8, 9, 10]),
        ([7, 8, 9, 10, 2], True, [8, 9, 10, 2]),
    ],
)
def test_special_tokens_stay_where_they_are(ids: list[int], at_start: bool, cut_ids: list[int]) -> None:
    found = truncate_ids(array(*ids), 4, array(1), array(2), at_start=at_start)
    assert found.tolist() == cut_ids


def test_special_tokens_that_alone_are_too_long_are_cut_too() -> None:
    assert truncate_ids(array(1, 7, 2), 1, array(1), array(2), at_start=False).tolist() == [1]
    assert truncate_ids(array(7, 8, 9), 2, array(), array(), at_start=True).tolist() == [8, 9]


def array(*ids: int) -> Ids:
    """Token ids."""
    return np.array(ids, np.int64)
