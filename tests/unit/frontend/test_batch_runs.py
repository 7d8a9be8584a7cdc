"""Runs of one batch, with a real store and a broker without sockets."""

import asyncio
import base64
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching
from frontend.api.errors import ApiError, from_failure, unknown_model
from frontend.batches import batch_run, leased_batch, model_search, pace, runner, sending
from frontend.batches.errors import StoreError, StoreFullError
from frontend.batches.rows import Batch
from frontend.batches.sending import Stop
from tests.harness import fake_worker
from tests.harness.batches import Bench, line, refuse

Check = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a store and a broker, with short parts and pauses."""
    monkeypatch.setattr(batch_run, "FIRST_PART_LINES", 4)
    monkeypatch.setattr(batch_run, "adapt_part_lines", lambda lines, took_s: lines)
    monkeypatch.setattr(pace, "MIN_PAUSE_S", 0.001)
    monkeypatch.setattr(leased_batch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(leased_batch, "RENEW_S", 0.02)
    return Bench(tmp_path)


def asynchronous(check: Check) -> Callable[[Bench], None]:
    """Run an asynchronous test."""

    @functools.wraps(check)
    def run(bench: Bench) -> None:
        asyncio.run(asyncio.wait_for(check(bench), 30))

    return run


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [one["custom_id"] for one in lines]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def check_complete(bench: Bench, batch: Batch, count: int) -> None:
    """Check that a batch of lines "0" to "count - 1" is complete, in order and right."""
    row = bench.find(batch)
    assert (row.status, row.total, row.completed, row.failed) == ("completed", count, count, 0)
    lines = await bench.read(row.output_file_id)
    assert ids(lines) == [str(number) for number in range(count)]
    for one in lines:
        expected = fake_worker.vector(f"text {one['custom_id']}")
        assert one["response"]["body"]["data"][0]["embedding"] == expected.tolist()
    assert row.error_file_id is None


def numbered(count: int) -> list[str]:
    return [line(str(number), f"text {number}") for number in range(count)]


@asynchronous
async def test_lines_are_answered_in_order(bench: Bench) -> None:
    batch = await bench.add(numbered(30))
    await bench.claim().run()
    await check_complete(bench, batch, 30)
    row = bench.find(batch)
    assert row.in_progress_at
    assert row.finalizing_at
    assert row.completed_at
    assert (row.model, row.revision) == ("fake", "revision-1")
    assert row.input_tokens == sum(len(f"text {number}") for number in range(30))
    assert bench.store.database.list_chunks(batch.id) == []


@asynchronous
async def test_fields_of_each_line_count(bench: Bench) -> None:
    lines = [
        line("a", "x", encoding_format="base64", dimensions=4),
        line("b", "x", input_type="query"),
        line("c", ["x", "y"], user="me"),
        line("d", [120, 121]),
    ]
    batch = await bench.add("\r\n".join(["\ufeff" + lines[0], "", *lines[1:], ""]))
    await bench.claim().run()
    found = await bench.read(bench.find(batch).output_file_id)
    assert ids(found) == ["a", "b", "c", "d"]
    answer = found[0]["response"]["body"]["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(answer), "<f4"), fake_worker.vector("x")[:4])
    assert bench.broker.texts[1] == b"query: x"
    assert len(found[2]["response"]["body"]["data"]) == 2
    assert {options.lane for options in bench.broker.options} == {1}


@asynchronous
async def test_batches_without_keys_share_results(bench: Bench) -> None:
    for _ in range(2):
        await bench.add([line("a", "x")])
        await bench.claim().run()
    one, other = bench.broker.options
    # The broker gives clients with an address one scope, and counts the holdings of each client and address.
    assert one.address
    assert len({one.client, one.address, other.client, other.address}) == 4
    await bench.add([line("a", "x")], owner="key k", caching=Caching.SKIP)
    await bench.claim().run()
    last = bench.broker.options[-1]
    assert (last.client, last.address, last.caching) == ("key k", "", Caching.SKIP)


@asynchronous
async def test_answers_depend_on_the_frontends_settings(bench: Bench) -> None:
    settings: dict[str, bool | int | str] = {"max_inputs": 1, "no_token_ids": True, "gone": 1}
    batch = await bench.add([line("a", "x"), line("b", ["x", "y"]), line("c", [1, 2])], settings=settings)
    await bench.claim().run()
    row = bench.find(batch)
    assert ids(await bench.read(row.output_file_id)) == ["a"]
    assert ids(await bench.read(row.error_file_id)) == ["b", "c"]


@asynchronous
async def test_items_fail_alone_if_requested(bench: Bench) -> None:
    lines = [
        line("a", [[120], []], error_policy="per_item"),
        line("b", [[]], error_policy="per_item"),
        line("c", ["x", "late"], error_policy="per_item"),
        line("d", ["y", "long"], error_policy="per_item"),
    ]
    bench.broker.failures = {b"late": ErrorCode.DEADLINE, b"long": ErrorCode.TOO_LONG}
    batch = await bench.add(lines)
    await bench.claim().run()
    found = await bench.read(bench.find(batch).output_file_id)
    errors = [["error" in item for item in one["response"]["body"]["data"]] for one in found]
    # A temporary failure of an input is repeated.
    assert errors == [[False, True], [True], [False, False], [False, True]]


@asynchronous
async def test_refused_requests_are_in_the_error_file(bench: Bench) -> None:
    lines = [
        line("a", "x"),
        line("b", []),
        line("c", "x", dimensions=99),
        line("d", "bad"),
        line("e", "x", encoding_format="other"),
    ]

    def fail(inputs: Any) -> None:
        if b"bad" in inputs:
            raise from_failure(ErrorCode.TOO_LONG, "the input has too many tokens")

    bench.broker.before = fail
    batch = await bench.add(lines)
    await bench.claim().run()
    row = bench.find(batch)
    assert (row.status, row.completed, row.failed) == ("completed", 1, 4)
    errors = await bench.read(row.error_file_id)
    assert ids(errors) == ["b", "c", "d", "e"]
    assert {one["response"]["status_code"] for one in errors} == {400}
    assert errors[2]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert ids(await bench.read(row.output_file_id)) == ["a"]


@asynchronous
async def test_batch_without_success_has_no_output(bench: Bench) -> None:
    batch = await bench.add([line("a", [])])
    await bench.claim().run()
    row = bench.find(batch)
    assert (row.status, row.failed, row.output_file_id) == ("completed", 1, None)
    assert row.error_file_id


@asynchronous
async def test_invalid_file_fails_with_line_numbers(bench: Bench) -> None:
    batch = await bench.add([line("a"), "", "{", line("a")])
    await bench.claim().run()
    row = bench.find(batch)
    assert row.status == "failed"
    assert [(one.code, one.line) for one in row.errors] == [("invalid_json_line", 3), ("duplicate_custom_id", 4)]
    assert bench.broker.texts == []


@asynchronous
async def test_empty_file_fails(bench: Bench) -> None:
    batch = await bench.add("\n \r\n")
    await bench.claim().run()
    assert [one.code for one in bench.find(batch).errors] == ["empty_file"]


@asynchronous
async def test_unknown_model_fails_the_batch(bench: Bench) -> None:
    batch = await bench.add([line("a"), line("b", model="other")])
    with patch.object(model_search, "UNKNOWN_S", 0.0):
        await bench.claim().run()
    (error,) = bench.find(batch).errors
    assert (error.code, error.line) == ("model_not_found", 2)
    assert "other" in error.message


@asynchronous
async def test_unknown_model_is_left_to_other_runners(bench: Bench) -> None:
    batch = await bench.add([line("a", "text a", model="other")])
    read_lines = bench.store.contents.read_lines
    await bench.claim("one").run()
    assert (bench.find(batch).status, bench.find(batch).total) == ("validating", 1)
    late = bench.claim("two")
    bench.broker.models["other"] = msgspec.structs.replace(fake_worker.model(), name="other")
    reads: list[int] = []
    bench.store.contents.read_lines = lambda *_, **known: reads.append(1) or read_lines(*_, **known)  # type: ignore
    await late.run()
    assert bench.find(batch).status == "completed"
    # Only the run reads the file again, not the validation.
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("name", "served", "status"),
    [
        ("other", ["other"], "validating"),
        ("other:query", ["other"], "validating"),
        ("fake:odd", ["fake"], "failed"),
        ("third", ["other"], "failed"),
    ],
)
def test_model_known_at_creation_is_awaited(bench: Bench, name: str, served: list[str], status: str) -> None:
    async def check() -> None:
        batch = await bench.add([line("a", model=name)], served=served)
        with (
            patch.object(model_search, "UNKNOWN_S", 0.0),
            patch.object(bench.broker, "find_model", side_effect=unknown_model(name, served=())),
        ):
            await bench.claim().run()
        row = bench.find(batch)
        assert row.status == status
        found = [(error.message, error.line) for error in row.errors]
        assert found == [(f"The model '{name}' does not exist", 1)] * (status == "failed")

    asyncio.run(check())


@asynchronous
async def test_loading_model_counts_as_known(bench: Bench) -> None:
    batch = await bench.add([line("a", model="other")])
    with patch.object(bench.broker, "find_model", side_effect=from_failure(ErrorCode.NO_WORKER)):
        await bench.claim().run()
    assert bench.find(batch).missing_since is None
    await bench.claim().run()
    since = bench.find(batch).missing_since
    assert since
    await bench.claim().run()
    assert bench.find(batch).missing_since == since


@asynchronous
async def test_batch_without_progress_gives_its_slot_to_others(bench: Bench) -> None:
    batch = await bench.add(numbered(6))

    def fail(_: Any) -> None:
        if len(bench.broker.texts) > 4:
            raise refuse(ErrorCode.NO_WORKER)

    bench.broker.before = fail
    with patch.object(sending, "WAIT_S", 0.05):
        run = bench.claim()
        await run.run()
    assert run.waits
    assert (bench.find(batch).status, bench.find(batch).completed) == ("in_progress", 4)
    bench.broker.before = lambda _: None
    later = await bench.add(numbered(1), created_at=int(time.time()) - 1)
    await bench.claim().run()
    assert bench.find(later).status == "completed"
    await bench.claim().run()
    await check_complete(bench, batch, 6)


@asynchronous
async def test_several_models_fail_the_batch(bench: Bench) -> None:
    bench.broker.models["second"] = msgspec.structs.replace(fake_worker.model(), name="second")
    batch = await bench.add([line("a"), line("b", model="fake:query"), line("c", model="second")])
    await bench.claim().run()
    (error,) = bench.find(batch).errors
    assert (error.code, error.line) == ("model_mismatch", 3)


@asynchronous
async def test_temporary_errors_are_retried(bench: Bench) -> None:
    codes = [ErrorCode.OVERLOADED, ErrorCode.NO_WORKER, ErrorCode.QUOTA, ErrorCode.DEADLINE, ErrorCode.DRAINING] * 10

    def fail(_: Any) -> None:
        if codes:
            raise refuse(codes.pop())

    bench.broker.before = fail
    batch = await bench.add(numbered(20))
    await bench.claim().run()
    await check_complete(bench, batch, 20)


@asynchronous
async def test_fault_of_a_line_is_reported(bench: Bench) -> None:
    def fail(inputs: Any) -> None:
        if b"text 1" in inputs:
            raise ValueError

    bench.broker.before = fail
    batch = await bench.add(numbered(3))
    await bench.claim().run()
    (error,) = await bench.read(bench.find(batch).error_file_id)
    assert (error["custom_id"], error["response"]["status_code"]) == ("1", 500)


@asynchronous
async def test_missing_model_is_awaited(bench: Bench) -> None:
    looks = 0

    async def find_model(name: str) -> Any:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise from_failure(ErrorCode.NO_WORKER)
        return fake_worker.model()

    bench.broker.find_model = find_model  # type: ignore[method-assign]
    batch = await bench.add(numbered(2))
    for _ in range(3):
        await bench.claim().run()
    await check_complete(bench, batch, 2)


@asynchronous
async def test_cancelled_batch_keeps_what_is_done(bench: Bench) -> None:
    batch = await bench.add(numbered(30))

    def cancel(_: Any) -> None:
        if len(bench.broker.texts) == 6:
            bench.broker.open.clear()

    bench.broker.before = cancel
    running = asyncio.create_task(bench.claim().run())
    await until(lambda: bench.find(batch).completed >= 4)
    assert bench.store.database.cancel_batch(batch.id, "", time.time()).status == "cancelling"  # type: ignore[union-attr]
    await asyncio.sleep(0.1)
    bench.broker.open.set()
    await running
    row = bench.find(batch)
    assert row.status == "cancelled"
    assert row.cancelled_at
    assert 4 <= row.completed < 30
    assert ids(await bench.read(row.output_file_id)) == [str(number) for number in range(row.completed)]


@asynchronous
async def test_batch_cancelled_before_its_claim_ends(bench: Bench) -> None:
    batch = await bench.add(numbered(3))
    bench.store.database.cancel_batch(batch.id, "", time.time())
    await bench.claim().run()
    row = bench.find(batch)
    assert (row.status, row.output_file_id, row.error_file_id) == ("cancelled", None, None)


@asynchronous
async def test_batch_cancelled_in_validation_has_no_total(bench: Bench) -> None:
    batch = await bench.add(numbered(3))
    run = bench.claim()
    bench.store.database.cancel_batch(batch.id, "", time.time())
    read_lines = bench.store.contents.read_lines

    async def read_slowly(*known: Any, **more: Any) -> AsyncIterator[Any]:
        async for found in read_lines(*known, **more):
            yield found
            await run._sender.stop_event.wait()

    bench.store.contents.read_lines = read_slowly  # type: ignore[method-assign, assignment]
    await run.run()
    assert (bench.find(batch).status, bench.find(batch).total) == ("cancelled", 0)


@asynchronous
async def test_expired_lines_are_in_the_error_file(bench: Bench) -> None:
    def fail(_: Any) -> None:
        if len(bench.broker.texts) > 5:
            raise refuse(ErrorCode.NO_WORKER)

    bench.broker.before = fail
    batch = await bench.add(numbered(11), expires_at=int(time.time()) + 2)
    await bench.claim().run()
    row = bench.find(batch)
    assert (row.status, row.completed, row.failed) == ("expired", 5, 6)
    errors = await bench.read(row.error_file_id)
    assert ids(errors) == [str(number) for number in range(5, 11)]
    assert {one["error"]["code"] for one in errors} == {"batch_expired"}
    assert row.expired_at


@asynchronous
async def test_replaced_model_ends_the_batch(bench: Bench) -> None:
    def replace(_: Any) -> None:
        if len(bench.broker.texts) == 6:
            bench.broker.models["fake"] = msgspec.structs.replace(fake_worker.model(), revision="revision-2")

    bench.broker.before = replace
    batch = await bench.add(numbered(11))
    await bench.claim().run()
    row = bench.find(batch)
    assert row.status == "failed"
    assert [one.code for one in row.errors] == ["model_replaced"]
    output, errors = await bench.read(row.output_file_id), await bench.read(row.error_file_id)
    assert sorted(map(int, ids(output) + ids(errors))) == list(range(11))
    assert {one["error"]["code"] for one in errors} == {"model_replaced"}
    for one in output:
        expected = fake_worker.vector(f"text {one['custom_id']}")
        assert one["response"]["body"]["data"][0]["embedding"] == expected.tolist()


@asynchronous
async def test_drained_batch_is_continued(bench: Bench) -> None:
    batch = await bench.add(numbered(30))
    bench.broker.before = lambda _: bench.broker.open.clear() if len(bench.broker.texts) == 6 else None
    first = bench.claim()
    running = asyncio.create_task(first.run())
    await until(lambda: bench.find(batch).completed >= 4)
    first.drain()
    bench.broker.open.set()
    await running
    row = bench.find(batch)
    assert row.status == "in_progress"
    assert 4 <= row.completed < 30
    done = len(bench.broker.texts)
    await bench.claim("two").run()
    await check_complete(bench, batch, 30)
    assert len(bench.broker.texts) <= done + 30 - row.completed


@asynchronous
async def test_frozen_runner_cannot_commit(bench: Bench) -> None:
    batch = await bench.add(numbered(12))
    bench.broker.open.clear()
    frozen = asyncio.create_task(bench.claim().run())
    await until(lambda: bench.broker.running)
    stolen = bench.store.database.claim_batch("two", time.time() + 100, 10.0)
    assert stolen
    bench.broker.open.set()
    await frozen
    assert bench.find(batch).completed == 0
    bench.store.database.release_lease(batch.id, "two")
    await bench.claim("three").run()
    await check_complete(bench, batch, 12)


@asynchronous
async def test_fault_of_the_runner_is_not_repeated_at_once(bench: Bench) -> None:
    batch = await bench.add(numbered(1))
    run, list_parts = bench.claim(), bench.store.database.list_parts
    bench.store.database.list_parts = lambda _: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    await run.run()
    assert bench.store.database.claim_batch("two", time.time(), 10.0) is None
    bench.store.database.list_parts = list_parts  # type: ignore[method-assign]
    bench.store.database.release_lease(batch.id, "one")
    await bench.claim().run()
    await check_complete(bench, batch, 1)


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("method", ["list_parts", "_make_file"])
def test_repeated_faults_end_the_batch(bench: Bench, method: str, expired: bool) -> None:
    async def check() -> None:
        batch = await bench.add(numbered(5), expires_at=int(time.time()) + (-1 if expired else 1000))
        for faults in range(1, 2 if expired else leased_batch.MAX_FAULTS + 1):
            assert bench.find(batch).status != "failed"
            run = bench.claim()
            assert run._batch.faults == faults - 1
            target = run if method == "_make_file" else bench.store.database
            with patch.object(target, method, side_effect=ZeroDivisionError):
                await run.run()
            assert bench.store.database.claim_batch("two", time.time() + 1, 10.0) is None
            bench.store.database.release_lease(batch.id, "one")
        row = bench.find(batch)
        assert (row.status, [one.code for one in row.errors]) == ("failed", ["internal_error"])

    asyncio.run(asyncio.wait_for(check(), 30))


@asynchronous
async def test_full_disk_is_waited_for(bench: Bench) -> None:
    batch = await bench.add(numbered(10))
    put, full = bench.store.contents.put, [True]

    async def fail(key: str, content: bytes) -> None:
        if full:
            raise StoreFullError("the file store is full")
        await put(key, content)

    bench.store.contents.put = fail  # type: ignore[method-assign]
    running = asyncio.create_task(bench.claim().run())
    await until(lambda: len(bench.broker.texts) == 8)
    await asyncio.sleep(0.05)
    assert (bench.find(batch).status, bench.find(batch).completed) == ("in_progress", 0)
    full.clear()
    await running
    await check_complete(bench, batch, 10)
    assert len(bench.broker.texts) == 10


async def run_killed(bench: Bench, batch: Batch, method: str, call: int, *, after: bool, expires: bool = False) -> None:
    """Run a batch whose runner is killed before or after a call of the store, and then by another runner.

    If it `expires`, it does so at the sixth line of the first runner.
    """
    database, contents = bench.store.database, bench.store.contents
    target: Any = contents if method == "put" else database
    whole, calls = getattr(target, method), 0

    def dies(now: bool) -> None:
        if now and calls == call + 1:
            raise StoreError("killed")

    def kill(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        dies(not after)
        found = whole(*arguments)
        dies(after)
        return found

    async def kill_later(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        dies(not after)
        await whole(*arguments)
        dies(after)

    first = bench.claim()
    if expires:
        bench.broker.before = lambda _: first._sender.stop(Stop.EXPIRE) if len(bench.broker.texts) > 5 else None
    # A store that fails ends a runner that drains, as a kill does, with the database as it is.
    first._leased.leave()
    setattr(target, method, kill_later if method == "put" else kill)
    with contextlib.suppress(ApiError):
        await first.run()
    setattr(target, method, whole)
    if bench.find(batch).status not in ("completed", "expired", "failed"):
        second = bench.claim("two")
        second._expiry = 0.0 if expires else second._expiry
        await second.run()


KILLS = [
    pytest.mark.parametrize("after", [False, True]),
    pytest.mark.parametrize("method", ["put", "save_batch", "commit_chunk", "list_chunks", "finish_batch"]),
    pytest.mark.parametrize("call", [0, 1]),
]


def killed_at_each_step(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with a kill before and after each of the first calls of the store."""
    return functools.reduce(lambda marked, mark: mark(marked), KILLS, test)


@killed_at_each_step
def test_runner_killed_at_each_step(bench: Bench, method: str, call: int, after: bool) -> None:
    async def check() -> None:
        batch = await bench.add([*numbered(9)])
        await run_killed(bench, batch, method, call, after=after)
        await check_complete(bench, batch, 9)
        assert len(bench.broker.texts) <= 9 + 8

    asyncio.run(asyncio.wait_for(check(), 30))


@killed_at_each_step
@pytest.mark.parametrize("status", ["expired", "failed"])
def test_skipped_lines_outlive_a_kill(bench: Bench, status: str, method: str, call: int, after: bool) -> None:
    async def check() -> None:
        batch = await bench.add(numbered(11))
        if status == "failed":
            other = msgspec.structs.replace(fake_worker.model(), revision="revision-2")
            bench.broker.before = lambda _: (
                bench.broker.models.update(fake=other) if len(bench.broker.texts) > 5 else None
            )
        await run_killed(bench, batch, method, call, after=after, expires=status == "expired")
        row = bench.find(batch)
        assert row.status == status
        assert [one.code for one in row.errors] == ["model_replaced"] * (status == "failed")
        output, errors = await bench.read(row.output_file_id), await bench.read(row.error_file_id)
        assert sorted(map(int, ids(output) + ids(errors))) == list(range(11))
        assert errors

    asyncio.run(asyncio.wait_for(check(), 30))


@pytest.mark.parametrize("when", ["before", "between", "cancelled"])
def test_lost_input_ends_the_batch(bench: Bench, when: str) -> None:
    async def check() -> None:
        batch = await bench.add(numbered(30))
        key = f"files/{batch.input_file_id}"
        if when == "before":
            await bench.store.contents.delete([key])
        else:
            commit = bench.store.database.commit_chunk

            def lose(*arguments: Any) -> bool:
                (Path(bench.config.data) / "files" / key).unlink(missing_ok=True)
                if when == "cancelled":
                    bench.store.database.cancel_batch(batch.id, "", time.time())
                    run._sender.stop(Stop.CANCEL)
                return commit(*arguments)

            bench.store.database.commit_chunk = lose  # type: ignore[method-assign, assignment]
        run = bench.claim()
        await run.run()
        row = bench.find(batch)
        assert row.status == ("cancelled" if when == "cancelled" else "failed")
        assert [one.code for one in row.errors] == ["input_file_missing"] * (when != "cancelled")
        done = ids(await bench.read(row.output_file_id))
        assert done == [str(number) for number in range(row.completed)]
        assert (row.completed == 0) == (when == "before")

    asyncio.run(asyncio.wait_for(check(), 30))


@pytest.mark.parametrize("lines", [0, 8])
@pytest.mark.parametrize(("stop", "status"), [(Stop.EXPIRE, "expired"), (Stop.CANCEL, "cancelled")])
def test_stopped_batch_ends_although_reads_fail(bench: Bench, stop: Stop, status: str, lines: int) -> None:
    async def check() -> None:
        batch = await bench.add(numbered(30))
        read_lines = bench.store.contents.read_lines

        async def fail(*known: Any, **more: Any) -> AsyncIterator[Any]:
            if len(bench.broker.texts) >= lines:
                raise StoreError("the file store is away")
            async for found in read_lines(*known, **more):
                yield found

        bench.store.contents.read_lines = fail  # type: ignore[method-assign, assignment]
        run = bench.claim()
        running = asyncio.create_task(run.run())
        await until(lambda: bench.find(batch).completed >= lines // 2)
        await asyncio.sleep(0.05)
        assert not running.done()
        run._sender.stop(stop)
        await running
        row = bench.find(batch)
        assert (row.status, row.completed, row.failed) == (status, lines, 0)
        assert len(await bench.read(row.output_file_id)) == lines

    asyncio.run(asyncio.wait_for(check(), 30))


def test_body_above_the_limit_fails_alone(tmp_path: Path) -> None:
    async def check() -> None:
        bench = Bench(tmp_path, max_body_bytes=1000)
        batch = await bench.add([line("a", "x" * 1000), line("b")])
        await bench.claim().run()
        (error,) = await bench.read(bench.find(batch).error_file_id)
        assert (error["custom_id"], error["response"]["status_code"]) == ("a", 413)

    asyncio.run(check())


def test_line_above_the_limit_fails_the_batch(tmp_path: Path) -> None:
    async def check() -> None:
        bench = Bench(tmp_path, max_body_bytes=1000)
        batch = await bench.add([line("b"), line("a", "x" * 100_000)])
        await bench.claim().run()
        assert [(one.code, one.line) for one in bench.find(batch).errors] == [("line_too_large", 2)]

    asyncio.run(check())


@asynchronous
async def test_client_leaves_room_for_others(bench: Bench) -> None:
    bench.broker.open.clear()
    for _ in range(runner.MAX_CLIENT_BATCHES + 2):
        await bench.add(numbered(1), owner="key one")
    late = await bench.add(numbered(1), owner="key two", client_jobs=7)
    one = runner.Runner(bench.store, bench.broker, bench.config, "")  # type: ignore[arg-type]
    running = asyncio.create_task(one.run())
    await until(lambda: bench.broker.running == runner.MAX_CLIENT_BATCHES + 1)
    bench.broker.open.set()
    await until(lambda: bench.store.database.count_open()["in_progress"] == 0)
    await until(lambda: len(bench.broker.texts) == runner.MAX_CLIENT_BATCHES + 3)
    assert bench.find(late).status in ("finalizing", "completed")
    assert {(options.client, options.client_jobs) for options in bench.broker.options} == {
        ("key one", 0),
        ("key two", 7),
    }
    one.drain()
    await running


@asynchronous
async def test_batches_without_model_leave_room_for_others(bench: Bench) -> None:
    dead = [await bench.add([line("a", model="other")]) for _ in range(runner.MAX_BATCHES + 2)]
    live = await bench.add(numbered(5))
    one = runner.Runner(bench.store, bench.broker, bench.config, "")  # type: ignore[arg-type]
    with patch.object(pace, "FIRST_DEFERRAL_S", 1000.0), patch.object(pace, "MAX_DEFERRAL_S", 1000.0):
        running = asyncio.create_task(one.run())
        await until(lambda: bench.find(live).status == "completed")
        assert {bench.find(batch).status for batch in dead} == {"validating"}
        bench.store.database.cancel_batch(dead[0].id, "", time.time())
        await until(lambda: bench.find(dead[0]).status == "cancelled")
    one.drain()
    await running


@asynchronous
async def test_damaged_row_stops_no_other_batch(bench: Bench) -> None:
    damaged = await bench.add(numbered(1))
    live = await bench.add(numbered(1))
    statement = "UPDATE batches SET body = '{\"id\": 5}' WHERE id = ?"
    bench.store.database._connection.transact(lambda execute: execute(statement, damaged.id))
    one = runner.Runner(bench.store, bench.broker, bench.config, "")  # type: ignore[arg-type]
    running = asyncio.create_task(one.run())
    await until(lambda: bench.find(live).status == "completed" or running.done())
    one.drain()
    await running


def test_health_file_is_touched_beside_a_slow_database(bench: Bench, tmp_path: Path) -> None:
    async def check() -> None:
        health, free = tmp_path / "health", threading.Event()
        one = runner.Runner(bench.store, bench.broker, bench.config, str(health))  # type: ignore[arg-type]
        one._health.due = 0.0
        with (
            patch.object(runner, "HEALTH_INTERVAL_S", 0.001),
            patch.object(bench.store.database, "claim_batch", side_effect=lambda *_: free.wait(30) and None),
        ):
            running = asyncio.create_task(one.run())
            await until(health.exists)
            health.unlink()
            one._health.due = 0.0
            await until(health.exists)
            free.set()
            one.drain()
            await running

    asyncio.run(asyncio.wait_for(check(), 30))
