"""The threads that prepare batches and run their micro-batches."""

import gc
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Lane, ModelKey, Option
from tests.harness.fake_worker import FakeBackend, Fakery, vector
from tests.harness.processes import until
from workers.engine.backend import Ids, Vectors
from workers.engine.batch_inputs import BatchInputs, truncate_ids
from workers.engine.lane_queue import MAX_OVERTAKES, LanePriorityQueue
from workers.engine.pipeline import BULK_LIMITS, Pipeline
from workers.engine.work import Work


def make_batch(*texts: str, lane: Lane = Lane.BULK, options: bytes = b"", model: str = "fake") -> Work:
    payloads = [text.encode() for text in texts]
    lengths = wire.pack_u32(map(len, payloads))
    return Work(wire.Batch(1, 1, model, bytes(len(texts)), lengths, lane, options), b"".join(payloads))


def make_pipeline(backend: FakeBackend, wake: Callable[[], None]) -> Pipeline:
    """Return a running pipeline of the model "fake"."""
    pipeline = Pipeline(wake)
    pipeline.start()
    pipeline.add_model(ModelKey("fake", ""), backend)
    return pipeline


def get_inputs(work: Work) -> BatchInputs:
    """Return the inputs of a batch, which must have been tokenized."""
    assert work.inputs
    return work.inputs


def run_batch(work: Work, backend: FakeBackend | None = None) -> Work:
    """Run a batch in a new pipeline, and return it."""
    woken = threading.Event()
    pipeline = make_pipeline(backend or FakeBackend(), woken.set)
    pipeline.submit(work)
    assert woken.wait(10)
    pipeline.stop()
    return pipeline.finished.popleft()


def test_vectors_keep_the_order_of_the_jobs() -> None:
    texts = ["bb", "a", "cccc", "", "ddd"]
    work = run_batch(make_batch(*texts))
    assert not work.error
    assert get_inputs(work).tokens == [2, 1, 4, 1, 3]
    assert [row.tolist() for row in work.vectors] == [vector(text or "\0").tolist() for text in texts]


def test_rejected_job_has_no_row() -> None:
    work = run_batch(make_batch("a", "x" * 65, "b"))
    (failure,) = get_inputs(work).failures
    assert (failure.position, failure.code) == (1, ErrorCode.TOO_LONG)
    assert failure.text.startswith("Input length 65 longer than allowed 64")
    assert [row.tolist() for row in work.vectors] == [vector("a").tolist(), vector("b").tolist()]


def test_batch_of_rejected_jobs_is_finished() -> None:
    work = run_batch(make_batch("x" * 65))
    assert len(get_inputs(work).failures) == 1
    assert work.vectors.shape[0] == 0


@pytest.mark.parametrize(
    "work", [make_batch("a", "raise"), Work(wire.Batch(1, 1, "fake", b"\0", wire.pack_u32([1])), b"\xff")]
)
def test_exception_fails_the_batch_only(work: Work) -> None:
    assert run_batch(work).error


@pytest.mark.parametrize("texts", [("one", "nan"), ("other", "short"), ("other", "third", "short")])
def test_invalid_vectors_fail_the_batch(texts: tuple[str, ...]) -> None:
    assert run_batch(make_batch(*texts)).error


class BlockedBackend(FakeBackend):
    """Backend that runs no inference before it has tokenized "last"."""

    def __init__(self) -> None:
        super().__init__(Fakery(requests=1))
        self._all_there = threading.Event()

    def tokenize_texts(self, texts: Sequence[str]) -> list[Ids]:
        if "last" in texts:
            self._all_there.set()
        return super().tokenize_texts(texts)

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        assert self._all_there.wait(10)
        return super().run_inference(request, ids, prompt_tokens)


class SparingBackend(FakeBackend):
    """Backend with a spare infer request."""

    def __init__(self, folder: Path, requests: int = 1) -> None:
        super().__init__(Fakery(requests=requests, folder=str(folder)))
        self._outputs *= 2
        self.used: list[tuple[int, str]] = []

    def open_spare_request(self) -> int:
        return self.requests

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        self.used.append((request, "".join(map(chr, ids[0]))))
        return super().run_inference(request, ids, prompt_tokens)


def test_interactive_batch_runs_beside_bulk_batches(tmp_path: Path) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := SparingBackend(tmp_path), finished.release)
    pipeline.submit(make_batch("wait end"))
    until(lambda: backend.used)
    pipeline.submit(make_batch("bulk"))
    for _ in range(2):
        pipeline.submit(make_batch("urgent", lane=Lane.INTERACTIVE))
        assert finished.acquire(timeout=10)
    (tmp_path / "end").touch()
    for _ in range(2):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.used == [(0, "wait end"), (1, "urgent"), (1, "urgent"), (0, "bulk")]


def test_bulk_micro_batches_are_longer_beside_a_spare_stream(tmp_path: Path) -> None:
    """Interactive inputs do not wait for them then."""
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := SparingBackend(tmp_path), finished.release)
    costs = backend.costs
    works = [make_batch(*["x" * 64] * 40, lane=lane) for lane in (Lane.BULK, Lane.BULK, Lane.INTERACTIVE)]
    for work in works:
        pipeline.submit(work)
        assert finished.acquire(timeout=10)
        until(lambda: not any(thread.name == "open-spare" for thread in threading.enumerate()))
    pipeline.stop()
    row_ms = costs.compute_row_ms(64)
    usual, longer = (
        math.ceil(40 / int((limit_ms - costs.inference_ms) / row_ms))
        for limit_ms in (costs.limit_ms, BULK_LIMITS * costs.limit_ms)
    )
    assert [work.micro_batches for work in works[1:]] == [longer, usual]
    assert longer < usual


def test_spare_stream_of_one_model_holds_up_no_other(tmp_path: Path) -> None:
    """Its thread is busy with the other model, but the other threads are idle."""
    finished = threading.Semaphore(0)
    first, second = SparingBackend(tmp_path, 2), SparingBackend(tmp_path, 2)
    pipeline = make_pipeline(first, finished.release)
    pipeline.add_model(ModelKey("other", ""), second)
    pipeline.submit(make_batch("bulk", model="other"))
    assert finished.acquire(timeout=10)
    pipeline.submit(make_batch("wait end"))
    until(lambda: not any(thread.name == "open-spare" for thread in threading.enumerate()))
    until(lambda: first.used and pipeline._spare_waits)
    pipeline.submit(make_batch("wait done", lane=Lane.INTERACTIVE))
    until(lambda: (2, "wait done") in first.used)
    pipeline.submit(make_batch("urgent", lane=Lane.INTERACTIVE, model="other"))
    assert finished.acquire(timeout=10)
    for name in ("end", "done"):
        (tmp_path / name).touch()
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert second.used == [(0, "bulk"), (1, "urgent")]


def test_free_stream_leaves_interactive_inputs_to_the_spare(tmp_path: Path) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := SparingBackend(tmp_path, 2), finished.release)
    pipeline.submit(make_batch("wait end"))
    until(lambda: not any(thread.name == "open-spare" for thread in threading.enumerate()))
    until(lambda: backend.used)
    for _ in range(20):
        until(lambda: pipeline._spare_waits)
        pipeline.submit(make_batch("urgent", lane=Lane.INTERACTIVE))
        assert finished.acquire(timeout=10)
    (tmp_path / "end").touch()
    assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.used == [(0, "wait end"), *[(2, "urgent")] * 20]


def test_spare_stream_is_for_bulk_work_only(tmp_path: Path) -> None:
    """One more inference would slow the interactive ones that run."""
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := SparingBackend(tmp_path), finished.release)
    pipeline.submit(make_batch("bulk"))
    assert finished.acquire(timeout=10)
    until(lambda: not any(thread.name == "open-spare" for thread in threading.enumerate()))
    pipeline.submit(make_batch("wait end", lane=Lane.INTERACTIVE))
    until(lambda: (0, "wait end") in backend.used)
    pipeline.submit(make_batch("second", lane=Lane.INTERACTIVE))
    (tmp_path / "end").touch()
    for _ in range(2):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.used == [(0, "bulk"), (0, "wait end"), (0, "second")]


class WideBackend(SparingBackend):
    """Backend with an infer request for all CPUs, which is number 2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._outputs *= 2
        self.borrowed: list[list[int]] = []

    def open_wide_request(self, borrow: Callable[[], AbstractContextManager[Sequence[int]]]) -> int | None:
        with borrow() as requests:
            self.borrowed.append(list(requests))
        return 2 if requests else None


def test_interactive_batch_alone_runs_on_all_cpus(tmp_path: Path) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := WideBackend(tmp_path), finished.release)
    for lane in (Lane.INTERACTIVE, Lane.BULK):
        pipeline.submit(make_batch("first", lane=lane))
        assert finished.acquire(timeout=10)
        until(lambda: not any(thread.name.startswith("open-") for thread in threading.enumerate()))
    backend.used.clear()
    for text in ("alone", "wait end"):
        until(lambda: pipeline._spare_waits)
        pipeline.submit(make_batch(text, lane=Lane.INTERACTIVE))
        assert text != "alone" or finished.acquire(timeout=10)
    until(lambda: len(backend.used) == 2)
    # The others run where they delay that one least.
    pipeline.submit(make_batch("second", lane=Lane.INTERACTIVE))
    assert finished.acquire(timeout=10)
    (tmp_path / "end").touch()
    assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.borrowed == [[0]]
    assert backend.used == [(2, "alone"), (2, "wait end"), (0, "second")]


def test_slow_stream_on_all_cpus_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := WideBackend(tmp_path), finished.release)
    served = pipeline._models[ModelKey("fake", "")]
    served.wide_pause_s = 0.0
    opened = iter([None, 2])
    monkeypatch.setattr(backend, "open_wide_request", lambda _: next(opened))
    for _ in range(3):
        pipeline.submit(make_batch("alone", lane=Lane.INTERACTIVE))
        assert finished.acquire(timeout=10)
        until(lambda: not any(thread.name.startswith("open-") for thread in threading.enumerate()))
        until(lambda: pipeline._spare_waits)
    pipeline.stop()
    assert [backend.used[number][0] for number in (0, 2)] == [0, 2]


def test_busy_streams_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inference would use the CPUs meanwhile, so that a stream on all of them would look slow."""
    monkeypatch.setattr("workers.engine.pipeline.BORROW_S", 0.01)
    backend = WideBackend(tmp_path)
    backend.requests = 2
    pipeline = make_pipeline(backend, lambda: None)
    served = pipeline._models[ModelKey("fake", "")]
    busy = served.free.get()
    pipeline._open_wide(served)
    served.free.put(busy)
    pipeline._open_wide(served)
    assert backend.borrowed == [[], [1, 0]]
    assert [served.free.get_nowait() for _ in range(2)] == [1, 0]
    assert served.wide.get_nowait() == 2
    pipeline.stop()


def test_interactive_batch_in_bulk_work_runs_on_one_cpu(tmp_path: Path) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := WideBackend(tmp_path), finished.release)
    pipeline.submit(make_batch("alone", lane=Lane.INTERACTIVE))
    assert finished.acquire(timeout=10)
    pipeline.submit(make_batch("wait end"))
    until(lambda: not any(thread.name.startswith("open-") for thread in threading.enumerate()))
    until(lambda: len(backend.used) == 2)
    pipeline.submit(make_batch("urgent", lane=Lane.INTERACTIVE))
    assert finished.acquire(timeout=10)
    (tmp_path / "end").touch()
    assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.used[1:] == [(0, "wait end"), (1, "urgent")]


class SlowlySparingBackend(SparingBackend):
    """Backend that opens its spare infer request after a signal."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_open = threading.Event()

    def open_spare_request(self) -> int:
        assert self.may_open.wait(10)
        return super().open_spare_request()


def test_pipeline_ends_after_its_spare_stream_opened(tmp_path: Path) -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(backend := SlowlySparingBackend(tmp_path), finished.release)
    pipeline.submit(make_batch("bulk"))
    assert finished.acquire(timeout=10)
    (opening,) = (thread for thread in threading.enumerate() if thread.name == "open-spare")
    threading.Timer(0.2, backend.may_open.set).start()
    pipeline.stop()
    assert not opening.is_alive()


def test_interactive_batch_overtakes_waiting_bulk_batches() -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(BlockedBackend(), finished.release)
    for text in ("first", "second", "urgent", "third", "last"):
        pipeline.submit(make_batch(text, lane=Lane.INTERACTIVE if text == "urgent" else Lane.BULK))
    for _ in range(5):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    texts = [bytes(work.frame).decode() for work in pipeline.finished]
    assert [text for text in texts if text != "urgent"] == ["first", "second", "third", "last"]
    assert texts.index("urgent") <= 1


class SlowTokenizer(FakeBackend):
    """Backend that tokenizes only its first batch until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(Fakery(requests=1))
        self.go_on = threading.Event()
        self.read: list[str] = []

    def tokenize_texts(self, texts: Sequence[str]) -> list[Ids]:
        if self.read:
            assert self.go_on.wait(10)
        self.read += texts
        return super().tokenize_texts(texts)


def test_interactive_batch_is_tokenized_before_bulk_batches() -> None:
    backend, finished = SlowTokenizer(), threading.Semaphore(0)
    pipeline = make_pipeline(backend, finished.release)
    for text in ("first", "second", "third", "urgent"):
        pipeline.submit(make_batch(text, lane=Lane.INTERACTIVE if text == "urgent" else Lane.BULK))
    backend.go_on.set()
    for _ in range(4):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert backend.read.index("urgent") < backend.read.index("third")


class NumberedBackend(FakeBackend):
    """Backend of an own dimension that notes which infer requests run its texts."""

    def __init__(self, dimension: int, requests: int) -> None:
        super().__init__(Fakery(dimension=dimension, requests=requests))
        self.used: set[int] = set()

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        self.used.add(request)
        return super().run_inference(request, ids, prompt_tokens)


def test_each_batch_runs_on_its_model() -> None:
    finished = threading.Semaphore(0)
    small, large = NumberedBackend(4, 1), NumberedBackend(8, 3)
    pipeline = make_pipeline(small, finished.release)
    pipeline.add_model(ModelKey("large", ""), large)
    for number in range(20):
        pipeline.submit(make_batch(str(number), model=("fake", "large")[number % 2]))
    for _ in range(20):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    for work in pipeline.finished:
        dimension = {"fake": 4, "large": 8}[work.batch.model]
        assert work.vectors.tolist() == [vector(bytes(work.frame).decode(), dimension).tolist()]
    assert small.used == {0}
    assert large.used <= {0, 1, 2}


def test_interactive_batch_overtakes_another_models_batches() -> None:
    finished = threading.Semaphore(0)
    pipeline = make_pipeline(BlockedBackend(), finished.release)
    pipeline.add_model(ModelKey("other", ""), FakeBackend(Fakery(requests=1)))
    for text in ("first", "second", "third"):
        pipeline.submit(make_batch(text))
    pipeline.submit(make_batch("urgent", lane=Lane.INTERACTIVE, model="other"))
    pipeline.submit(make_batch("last"))
    for _ in range(5):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert [bytes(work.frame).decode() for work in pipeline.finished].index("urgent") <= 1


def test_busy_model_does_not_hold_up_another() -> None:
    finished = threading.Semaphore(0)
    blocked, wide = BlockedBackend(), FakeBackend(Fakery(requests=4))
    pipeline = make_pipeline(blocked, finished.release)
    pipeline.add_model(ModelKey("other", ""), wide)
    for number in range(6):
        pipeline.submit(make_batch(str(number)))
    for number in range(3):
        pipeline.submit(make_batch(f"other {number}", model="other"))
    for _ in range(3):
        assert finished.acquire(timeout=10)
    assert [work.batch.model for work in pipeline.finished] == ["other"] * 3
    pipeline.submit(make_batch("last"))
    for _ in range(7):
        assert finished.acquire(timeout=10)
    pipeline.stop()
    assert not any(work.error for work in pipeline.finished)


def test_removed_model_finishes_its_batches() -> None:
    finished = threading.Semaphore(0)
    backend = BlockedBackend()
    pipeline = make_pipeline(backend, finished.release)
    pipeline.submit(make_batch("first"))
    pipeline.submit(make_batch("last"))
    pipeline.remove_model(ModelKey("fake", ""))
    pipeline.submit(make_batch("late"))
    for _ in range(3):
        assert finished.acquire(timeout=10)
    errors = {bytes(work.frame).decode(): work.error for work in pipeline.finished}
    assert errors == {"first": "", "last": "", "late": "the worker does not serve revision  of fake"}
    # The memory is free although the threads go on.
    pipeline.finished.clear()
    alive = weakref.ref(backend)
    del backend
    until(lambda: gc.collect() >= 0 and alive() is None, 5, "the end of the backend")
    pipeline.stop()


def test_overtaking_a_bulk_item_is_limited() -> None:
    line: LanePriorityQueue[str] = LanePriorityQueue()
    line.put(Lane.BULK, "bulk")
    for number in range(2 * MAX_OVERTAKES):
        line.put(Lane.INTERACTIVE, f"urgent {number}")
    line.put_end()
    order = list(iter(line.get, None))
    assert order.index("bulk") in (MAX_OVERTAKES, MAX_OVERTAKES - 1)
    assert [item for item in order if item != "bulk"] == [f"urgent {number}" for number in range(2 * MAX_OVERTAKES)]


def test_token_ids_are_not_changed() -> None:
    ids = wire.pack_u32([104, 105])
    work = run_batch(Work(wire.Batch(1, 1, "fake", bytes([1]), wire.pack_u32([len(ids)])), ids))
    assert work.vectors[0].tolist() == vector("hi").tolist()


# --- options ---------------------------------------------------------------------------------------------------------


def test_frame_of_vectors_is_not_copied() -> None:
    work = run_batch(make_batch("a", "b"))
    frame, sizes = work.build_frame()
    assert sizes == b""
    assert bytes(frame) == work.vectors.tobytes()
    work.vectors[0, 0] = 7
    assert bytes(frame) == work.vectors.tobytes()


def test_rows_keep_the_order_of_the_jobs() -> None:
    tokenize = int(Option.TOKENIZE)
    work = run_batch(make_batch("ab", "x" * 65, "c", "y" * 70, options=bytes([tokenize, 0, 0, tokenize])))
    frame, sizes = work.build_frame()
    ids, row, long = wire.split_frame(frame, wire.unpack_u32(sizes))
    assert list(wire.unpack_u32(bytes(ids))) == [97, 98]
    assert np.frombuffer(row, "<f4").tolist() == vector("c").tolist()
    assert len(long) == 4 * 70
    assert get_inputs(work).tokens == [2, 65, 1, 70]


def test_tokenize_only_batch_runs_no_inference() -> None:
    work = run_batch(make_batch("raise", options=bytes([Option.TOKENIZE])))
    assert not work.error
    assert (work.inference_s, work.padding) == (0, 0)
    assert bytes(work.build_frame()[0]) == wire.pack_u32(map(ord, "raise"))


def test_inputs_are_truncated_on_the_requested_side() -> None:
    text = "".join(chr(97 + number % 26) for number in range(70))
    work = run_batch(
        make_batch(
            text, text, "brief", options=bytes([Option.TRUNCATE_END, Option.TRUNCATE_START, Option.TRUNCATE_END])
        )
    )
    assert (get_inputs(work).tokens, get_inputs(work).truncated) == ([64, 64, 5], [6, 6, 0])
    assert [row.tolist() for row in work.vectors] == [vector(kept).tolist() for kept in (text[:64], text[6:], "brief")]


class NormalizingBackend(FakeBackend):
    """Backend that reports to have halved every vector."""

    def get_divisors(self, request: int) -> Vectors | None:
        rows = len(self._outputs[request])
        return np.full((rows, 1), 2, np.float32)

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        self._outputs[request] = super().run_inference(request, ids, prompt_tokens)
        return self._outputs[request]


def test_normalization_is_undone_on_request() -> None:
    texts = ["a", "bbb", "cc", "dddd"]
    work = run_batch(make_batch(*texts, options=bytes([0, Option.RAW, 0, Option.RAW])), NormalizingBackend())
    assert [row.tolist() for row in work.vectors] == [
        (vector(text) * factor).tolist() for text, factor in zip(texts, (1, 2, 1, 2), strict=True)
    ]


def test_padding_counts_tokens_of_no_job() -> None:
    assert run_batch(make_batch("aaaa", "bb", "c")).padding == 1  # the first job alone, then the others together
    assert run_batch(make_batch("aaaa", "bbbb")).padding == 0


def test_micro_batches_are_counted() -> None:
    work = run_batch(make_batch("aaaa", "bb", "c"))
    assert (work.micro_batches, len(work.vectors)) == (2, 3)
    tokenized = run_batch(make_batch("aaaa", options=bytes([Option.TOKENIZE])))
    assert (tokenized.micro_batches, len(tokenized.vectors)) == (0, 0)


def test_inference_time_spans_all_micro_batches() -> None:
    """The time is not a sum, because micro-batches run in parallel."""
    work = make_batch("a", "b", "c")
    work.expect_micro_batches([[0], [1], [2]], [1, 1, 1], pads=True)
    assert not work.finish_micro_batch(2.0, 3.0, "")
    assert not work.finish_micro_batch(1.0, 5.0, "")
    assert work.finish_micro_batch(3.0, 4.0, "")
    assert work.inference_s == 4.0
    assert run_batch(make_batch("a")).inference_s > 0


# --- truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "at_start", "expected"),
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
def test_truncation_keeps_special_tokens(ids: list[int], at_start: bool, expected: list[int]) -> None:
    found = truncate_ids(make_ids(*ids), 4, make_ids(1), make_ids(2), at_start=at_start)
    assert found.tolist() == expected


def test_too_many_special_tokens_are_truncated() -> None:
    assert truncate_ids(make_ids(1, 7, 2), 1, make_ids(1), make_ids(2), at_start=False).tolist() == [1]
    assert truncate_ids(make_ids(7, 8, 9), 2, make_ids(), make_ids(), at_start=True).tolist() == [8, 9]


def make_ids(*ids: int) -> Ids:
    """Return token ids."""
    return np.array(ids, np.int64)


def test_answer_longer_than_a_frame_fails_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker then runs the jobs alone. libzmq would end the connection of a worker that sent the answer."""
    options = bytes([Option.TOKENIZE, Option.TOKENIZE, 0])
    size = 4 * (30 + 40) + 4 * FakeBackend().dimension
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", size)
    assert run_batch(make_batch("a" * 30, "b" * 40, "c", options=options)).error == ""
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", size - 1)
    error = run_batch(make_batch("a" * 30, "b" * 40, "c", options=options)).error
    assert error == f"tokenizer: an answer of {size} bytes is longer than a frame"


class PromptedBackend(FakeBackend):
    """Backend that takes a prompt to be three tokens, and records what the pooling leaves out."""

    before = np.array([ord("^")], np.int64)

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, int] = {}

    def count_prompt_tokens(self, text: wire.Frame) -> int:
        return 3

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        texts = ["".join(map(chr, text_ids)) for text_ids in ids]
        self.left_out |= dict(zip(texts, prompt_tokens, strict=True))
        return super().run_inference(request, ids, prompt_tokens)


def test_prompt_of_a_job_is_left_out() -> None:
    backend, long = PromptedBackend(), "^q:" + "x" * 62
    start, end = Option.PROMPT | Option.TRUNCATE_START, Option.PROMPT | Option.TRUNCATE_END
    texts = ["^q:a", "^q:b", long, long + "x", long + "xx", long + "y"]
    run_batch(make_batch(*texts, options=bytes([Option.PROMPT, 0, start, start, start, end])), backend)
    cut = "x" * 63
    # Truncation at the start takes the prompt first, but not the special token before the prompt.
    assert backend.left_out == {"^q:a": 3, "^q:b": 0, "^:" + cut[1:]: 2, "^" + cut: 1, long[:64]: 3}
