"""Answers to users while workers crash, hang, lag and are killed. Runs the three real programs."""

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


def find_holder(cluster: Cluster, workers: list[Program], batches: int) -> Program:
    """Return the worker that holds this number of batches."""
    named = {f"/{worker.process.pid}": worker for worker in workers}
    (name,) = until(lambda: [worker["name"] for worker in cluster.workers() if worker["leased_batches"] == batches])
    return named[name[name.index("/") :]]


def test_waiting_batch_of_killed_workers_is_not_blamed(cluster: Cluster) -> None:
    """The batch waits twice in a worker that is killed; if it were blamed each time, it would be poison."""
    _, workers, _ = cluster.all(workers=2, requests=1)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            running = [await asker.ask("wait never"), await asker.ask("wait never")]
            waiting = await asker.ask("a", "b")
            for task in running:
                task.cancel()
            await awaited(lambda: cluster.count("jobs_cancelled") == 2)
            for _ in range(2):
                (await asyncio.to_thread(find_holder, cluster, workers, 2)).signal(signal.SIGKILL)
            cluster.worker()
            return await waiting

    assert right(asyncio.run(run()), ("a", "b"))
    assert cluster.count("jobs_requeued") == 4
    assert cluster.count("workers_evicted") == 2


def test_workers_that_die_together_do_not_blame_a_job_twice(cluster: Cluster) -> None:
    """The host of both workers is gone. The second one's death is not noticed yet when the job is requeued."""
    _, workers, _ = cluster.all(workers=2)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            asked = await asker.ask("wait go")
            for worker in workers:
                worker.signal(signal.SIGSTOP)
            await awaited(lambda: cluster.count("workers_evicted") == 2)
            cluster.worker()
            asker.release()
            return await asked

    assert right(asyncio.run(run()), ("wait go",))


@pytest.mark.parametrize(("order", "status"), [("segfault", -signal.SIGSEGV), ("break", 70)])
def test_crashed_workers_batch_is_answered(cluster: Cluster, order: str, status: int) -> None:
    """The worker ends because of a segmentation fault, or an exception in a thread of its pipeline."""
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
async def restart_worker(cluster: Cluster) -> AsyncIterator[list[Program]]:
    """Restart a worker whenever it ends, and yield the list of its processes."""
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
async def send_as_one_batch(
    cluster: Cluster, texts: Sequence[str]
) -> AsyncIterator[list["asyncio.Task[httpx.Response]"]]:
    """Send a request for each text while there is no worker, so that the first worker gets all texts in one batch.

    No batch may be answered before: if its answer were lost with the process, that batch would be blamed.
    """
    cluster.all()[1][0].signal(signal.SIGKILL)
    await awaited(lambda: cluster.health()["workers"] == 0)
    async with httpx.AsyncClient(timeout=100) as client:
        url = f"{cluster.url}/v1/embeddings"
        asked = [asyncio.create_task(client.post(url, json=body(text))) for text in texts]
        await awaited(lambda: cluster.number("queued_jobs") == len(texts))
        yield asked


def test_segfaulting_input_ends_two_workers(cluster: Cluster) -> None:
    """The 31 other jobs of its batch are answered, and the same input is rejected when it is sent again."""
    texts = [*(f"text {number}" for number in range(31)), "segfault"]

    async def run() -> tuple[list[httpx.Response], list[Program]]:
        async with send_as_one_batch(cluster, texts) as asked:
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


def test_crash_counts_when_the_input_is_sent_again(cluster: Cluster) -> None:
    """The first request fails because no other worker comes within the grace period."""
    cluster.broker("--worker-grace-s", "0.5")
    workers = [cluster.worker()]
    cluster.frontend()
    cluster.until_workers(1)
    url = f"{cluster.url}/v1/embeddings"
    assert httpx.post(url, json=body("segfault"), timeout=30).status_code == 503
    workers.append(cluster.worker())
    cluster.until_workers(1)
    assert httpx.post(url, json=body("segfault"), timeout=30).status_code == 422
    assert [worker.wait() for worker in workers] == [-signal.SIGSEGV] * 2
    cluster.worker()
    cluster.until_workers(1)
    assert httpx.post(url, json=body("segfault"), timeout=30).status_code == 422
    assert right(httpx.post(url, json=body("a"), timeout=30), ("a",))


def test_several_poisons_end_a_single_worker_four_times(cluster: Cluster) -> None:
    texts = [f"text {number}" for number in range(29)] + ["crash", "segfault", " crash"]
    random.Random(23).shuffle(texts)

    async def run() -> tuple[list[httpx.Response], int]:
        async with send_as_one_batch(cluster, texts) as asked, restart_worker(cluster) as lives:
            return await asyncio.gather(*asked), len(lives) - 1

    answers, ends = asyncio.run(run())
    bad = [text for text, answer in zip(texts, answers, strict=True) if answer.status_code != 200]
    assert sorted(bad) == [" crash", "crash", "segfault"]
    assert {answer.status_code for answer in answers} == {200, 422}
    assert all(right(answer, (text,)) for text, answer in zip(texts, answers, strict=True) if text not in bad)
    # One end for the batch, and one for each poison alone.
    assert ends == 4
    until(lambda: cluster.number("open_jobs") == 0)


@pytest.mark.parametrize("order", ["nan", "short"])
def test_bad_vectors_are_never_served(cluster: Cluster, order: str) -> None:
    """The vectors are not finite, or one is missing. The other jobs of the batch are answered."""
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


def test_slow_worker_gets_fewer_jobs(cluster: Cluster) -> None:
    """The worker is ten times slower than it announces, and than the other worker."""
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


def test_worker_killed_in_its_drain_is_not_blamed(cluster: Cluster) -> None:
    """The worker is killed twice before its batch ends; if the batch were blamed, it would be poison."""
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


def test_churning_workers_lose_no_job(cluster: Cluster) -> None:
    """A worker is added and another killed when every client has received an answer since the last kill was noticed.

    So no input meets two kills, which would make it poison.
    """
    _, workers, _ = cluster.all(workers=3, us_per_token=200)
    done: Counter[int] = Counter()
    dice = random.Random(41)

    async def all_answered_since(before: Counter[int]) -> None:
        await awaited(lambda: len(done) == 8 and all(done[name] > before[name] for name in range(8)))

    def is_gone(worker: Program) -> bool:
        names = [listed["name"] for listed in cluster.workers()]
        return worker.process.poll() is not None and not any(name.endswith(f"/{worker.process.pid}") for name in names)

    async def churn() -> None:
        for _ in range(60):
            await all_answered_since(done.copy())
            workers.append(cluster.worker(us_per_token=200))
            leaving = workers.pop(dice.randrange(len(workers)))
            leaving.signal(dice.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
            await asyncio.to_thread(until, lambda leaving=leaving: is_gone(leaving))

    assert set(asyncio.run(load(cluster.url, 8, churn, done))) == {200}
    assert cluster.count("workers_evicted") >= 10
    cluster.until_workers(3)
    until(lambda: cluster.number("open_jobs") == 0)


def test_worker_survives_an_unwritable_health_file(cluster: Cluster) -> None:
    folder = cluster.folder / "health"
    cluster.broker()
    worker = cluster.worker("--health-file", str(folder / "worker"))
    cluster.frontend()
    until(lambda: "worker, retrying: No such file or directory" in worker.output or worker.process.poll())
    cluster.until_workers(1)
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30), ("a",))
    folder.mkdir()
    until(lambda: (folder / "worker").exists())
    assert worker.process.poll() is None
