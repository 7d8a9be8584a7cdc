"""What users see when workers crash, break, lag and are killed at the worst moment: the three real programs."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.harness.clients import Asker, awaited, body, load, right
from tests.harness.processes import Cluster, Program, until


def holder(cluster: Cluster, workers: list[Program], batches: int) -> Program:
    """The worker that holds so many batches."""
    named = {f"/{worker.process.pid}": worker for worker in workers}
    (name,) = until(lambda: [one["name"] for one in cluster.workers() if one["leased_batches"] == batches])
    return named[name[name.index("/") :]]


def test_batch_that_only_waited_in_killed_workers_is_not_blamed(cluster: Cluster) -> None:
    """Twice it waits behind a batch whose worker is killed: were it blamed each time, it would be poison."""
    _, workers, _ = cluster.all(workers=2, requests=1)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            running = [await asker.ask("wait never"), await asker.ask("wait never")]
            waiting = await asker.ask("a", "b")
            for one in running:
                one.cancel()
            await awaited(lambda: cluster.count("jobs_cancelled") == 2)
            for _ in range(2):
                (await asyncio.to_thread(holder, cluster, workers, 2)).signal(signal.SIGKILL)
            cluster.worker()
            return await waiting

    assert right(asyncio.run(run()), ("a", "b"))
    assert cluster.count("jobs_requeued") == 4
    assert cluster.count("workers_evicted") == 2


@pytest.mark.parametrize(("order", "status"), [("segfault", -signal.SIGSEGV), ("break", 70)])
def test_batch_of_a_worker_that_ends_itself_is_answered_by_another(cluster: Cluster, order: str, status: int) -> None:
    """By a segmentation fault; by an exception in a thread of its pipeline."""
    _, workers, _ = cluster.all(workers=2)
    texts = ("a", f"once here {order}", "b")

    async def end_one() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            assert right(await client.post(f"{cluster.url}/v1/embeddings", json=body(*texts)), texts)

    assert set(asyncio.run(load(cluster.url, 4, end_one))) == {200}
    statuses = [worker.process.poll() for worker in workers]
    assert sorted(statuses, key=str) == sorted([status, None], key=str)
    assert cluster.count("workers_evicted") == 1


@asynccontextmanager
async def kept_running(cluster: Cluster) -> AsyncIterator[list[Program]]:
    """One worker that is started again whenever it ends; all of them in turn."""
    lives = [cluster.worker()]

    async def keep() -> None:
        while True:
            if lives[-1].process.poll() is not None:
                lives.append(cluster.worker())
            await asyncio.sleep(0.01)

    keeper = asyncio.create_task(keep())
    yield lives
    keeper.cancel()


@asynccontextmanager
async def asked_as_one_batch(
    cluster: Cluster, texts: Sequence[str]
) -> AsyncIterator[list["asyncio.Task[httpx.Response]"]]:
    """A request for each text, waiting for a worker to come: it will get them all in its first batch.

    If a batch were answered before it, and the answer lost with the process, that one would be blamed.
    """
    cluster.all()[1][0].signal(signal.SIGKILL)
    await awaited(lambda: cluster.health()["workers"] == 0)
    async with httpx.AsyncClient(timeout=100) as client:
        url = f"{cluster.url}/v1/embeddings"
        asked = [asyncio.create_task(client.post(url, json=body(text))) for text in texts]
        await awaited(lambda: cluster.number("queued_jobs") == len(texts))
        yield asked


def test_input_that_segfaults_ends_two_workers_and_no_third(cluster: Cluster) -> None:
    """Its 31 neighbours are served, and who sends it again is refused."""
    texts = [*(f"text {number}" for number in range(31)), "segfault"]

    async def run() -> tuple[list[httpx.Response], list[Program]]:
        async with asked_as_one_batch(cluster, texts) as asked:
            workers = [cluster.worker() for _ in range(3)]
            return await asyncio.gather(*asked), workers

    answers, workers = asyncio.run(run())
    assert all(right(answer, (text,)) for answer, text in zip(answers[:31], texts, strict=False))
    assert answers[31].status_code == 422
    statuses = [worker.process.poll() for worker in workers]
    assert sorted(statuses, key=str) == sorted([-signal.SIGSEGV, -signal.SIGSEGV, None], key=str)
    again = httpx.post(f"{cluster.url}/v1/embeddings", json=body("segfault"), timeout=30)
    assert again.status_code == 422
    assert cluster.count("jobs_blocked") == 1


def test_several_poisons_and_one_worker_come_to_an_end(cluster: Cluster) -> None:
    texts = [f"text {number}" for number in range(29)] + ["crash", "segfault", " crash"]
    random.Random(23).shuffle(texts)

    async def run() -> tuple[list[httpx.Response], int]:
        async with asked_as_one_batch(cluster, texts) as asked, kept_running(cluster) as lives:
            return await asyncio.gather(*asked), len(lives) - 1

    answers, ends = asyncio.run(run())
    bad = [text for text, answer in zip(texts, answers, strict=True) if answer.status_code != 200]
    assert sorted(bad) == [" crash", "crash", "segfault"]
    assert {answer.status_code for answer in answers} == {200, 422}
    assert all(right(answer, (text,)) for text, answer in zip(texts, answers, strict=True) if text not in bad)
    # One end for all of them, and one for each alone.
    assert ends == 4
    until(lambda: cluster.number("open_jobs") == 0)


@pytest.mark.parametrize("order", ["nan", "short"])
def test_bad_vectors_are_never_served(cluster: Cluster, order: str) -> None:
    """Not finite; and one fewer than there are inputs. The neighbours of the input that does it are served."""
    cluster.all()
    texts = [f"text {number}" for number in range(8)] + [order]

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = [client.post(f"{cluster.url}/v1/embeddings", json=body(text)) for text in texts]
            return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    assert all(right(answer, (text,)) for answer, text in zip(answers[:-1], texts, strict=False))
    assert answers[-1].status_code == 500
    assert cluster.count("batches_failed") >= 2


def test_slow_worker_is_given_less(cluster: Cluster) -> None:
    """Ten times slower than it says, and than the other one."""
    cluster.broker()
    fast = cluster.worker(us_per_token=500, requests=1)
    slow = cluster.worker(us_per_token=5000, requests=1)
    cluster.frontend()
    cluster.until_workers(2)

    def answered(worker: Program) -> int:
        (jobs,) = [one["answered_jobs"] for one in cluster.workers() if one["name"].endswith(f"/{worker.process.pid}")]
        return int(jobs)

    async def serve() -> None:
        await awaited(lambda: answered(fast) >= 300)

    statuses = asyncio.run(load(cluster.url, 8, serve))
    assert set(statuses) == {200}
    assert 0 < answered(slow) < answered(fast) / 3
    assert cluster.count("jobs_answered") == 2 * len(statuses)
    assert cluster.count("late_answers") == 0


def test_worker_killed_while_it_drains_loses_nothing_and_blames_nobody(cluster: Cluster) -> None:
    """Its batch takes longer than whoever stops it waits: twice, which would make it poison if it was blamed."""
    _, (worker,), _ = cluster.all()

    async def run(leaving: Program) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            asked = await asker.ask("wait go")
            for ends in (1, 2):
                await awaited(lambda: cluster.workers()[0]["leased_batches"] == 1)
                leaving.signal(signal.SIGTERM)
                await asyncio.to_thread(until, lambda leaving=leaving: "draining" in leaving.output)
                leaving.signal(signal.SIGKILL)
                await asyncio.to_thread(until, lambda ends=ends: cluster.count("jobs_requeued") == ends)
                leaving = cluster.worker()
                await awaited(cluster.workers)
            asker.release()
            return await asked

    assert right(asyncio.run(run(worker)), ("wait go",))


def test_workers_that_come_and_go_all_the_time_lose_nothing(cluster: Cluster) -> None:
    """A worker is added and another killed as soon as every client has had an answer since the last time, so that no
    input can have been there twice: then it would be poison."""
    _, workers, _ = cluster.all(workers=3, us_per_token=200)
    done: Counter[int] = Counter()
    dice = random.Random(41)

    async def all_answered_since(before: Counter[int]) -> None:
        await awaited(lambda: len(done) == 8 and all(done[name] > before[name] for name in range(8)))

    async def churn() -> None:
        for _ in range(60):
            await all_answered_since(done.copy())
            workers.append(cluster.worker(us_per_token=200))
            workers.pop(dice.randrange(len(workers))).signal(dice.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))

    assert set(asyncio.run(load(cluster.url, 8, churn, done))) == {200}
    assert cluster.count("workers_evicted") >= 10
    cluster.until_workers(3)
    until(lambda: cluster.number("open_jobs") == 0)


def test_worker_whose_health_file_cannot_be_touched_goes_on(cluster: Cluster) -> None:
    folder = cluster.folder / "health"
    cluster.broker()
    worker = cluster.worker("--health-file", str(folder / "worker"))
    cluster.frontend()
    until(lambda: "worker cannot be touched: No such file or directory" in worker.output or worker.process.poll())
    cluster.until_workers(1)
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30), ("a",))
    folder.mkdir()
    until(lambda: (folder / "worker").exists())
    assert worker.process.poll() is None
