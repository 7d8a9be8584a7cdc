"""What users see when processes come, go and die: the three real programs, with a fake model."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.harness.clients import awaited, body, load, right
from tests.harness.processes import Cluster, alive, descendants, until


def test_killed_workers_batch_is_answered_by_another(cluster: Cluster) -> None:
    _, (doomed, _), _ = cluster.all(workers=2)

    async def kill() -> None:
        doomed.signal(signal.SIGKILL)
        await awaited(lambda: cluster.health()["workers"] == 1)

    statuses = asyncio.run(load(cluster.url, 8, kill))
    assert set(statuses) == {200}


def test_only_worker_killed_and_started_again_loses_nothing(cluster: Cluster) -> None:
    _, (doomed,), _ = cluster.all()

    async def replace() -> None:
        doomed.signal(signal.SIGKILL)
        await asyncio.to_thread(doomed.wait)
        cluster.worker()

    assert set(asyncio.run(load(cluster.url, 8, replace))) == {200}


def test_killed_idle_workers_are_seen_by_their_connections_and_not_by_their_silence(cluster: Cluster) -> None:
    broker = cluster.broker()
    workers = [cluster.worker() for _ in range(12)]
    cluster.frontend()
    cluster.until_workers(12)
    for left in range(11, -1, -1):
        workers.pop().signal(signal.SIGKILL)
        until(lambda left=left: cluster.health()["workers"] == left)  # type: ignore[misc]
    assert broker.output.count("connection lost") == 12


def test_frontend_that_reads_its_answers_is_never_refused_for_unread_ones(cluster: Cluster) -> None:
    """However little it may have unread, and over a broker's death: it says what it has received."""
    broker = cluster.broker("--max-unread-bytes", "20000")
    cluster.worker()
    cluster.frontend()
    cluster.until_workers(1)

    async def replace() -> None:
        # 32 bytes a vector: many times what may be unread.
        await awaited(lambda: cluster.count("jobs_answered") > 3000)
        broker.signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait)
        cluster.broker("--max-unread-bytes", "20000")
        await awaited(lambda: cluster.health().get("workers") == 1)
        await awaited(lambda: cluster.count("jobs_answered") > 3000)

    assert set(asyncio.run(load(cluster.url, 4, replace))) == {200}


def test_one_callers_quota_is_not_anothers(cluster: Cluster) -> None:
    cluster.broker("--max-jobs", "8")
    cluster.worker()
    cluster.frontend()
    cluster.until_workers(1)

    async def ask(client: httpx.AsyncClient, key: str, *texts: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await client.post(f"{cluster.url}/v1/embeddings", json=body(*texts), headers=headers)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            flood = asyncio.create_task(ask(client, "one", "slow 1", "a", "b", "c"))
            await awaited(lambda: cluster.health()["open_jobs"] == 4)
            refused = await ask(client, "one", "d")
            served = await ask(client, "two", "e")
            assert (refused.status_code, served.status_code, (await flood).status_code) == (429, 200, 200)
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(refused.headers["retry-after"]) <= 120

    asyncio.run(run())


def test_killed_broker_started_again_loses_nothing(cluster: Cluster) -> None:
    broker, _, _ = cluster.all(workers=2)

    async def replace() -> None:
        broker.signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait)
        cluster.broker()

    assert set(asyncio.run(load(cluster.url, 8, replace))) == {200}


def test_worker_that_joins_takes_work_at_once(cluster: Cluster) -> None:
    cluster.all()

    async def join() -> None:
        cluster.worker()
        await awaited(lambda: [one for one in cluster.workers() if one["answered_jobs"]][1:])

    assert set(asyncio.run(load(cluster.url, 8, join))) == {200}


def test_worker_stopped_under_load_drains(cluster: Cluster) -> None:
    _, (leaving, _), _ = cluster.all(workers=2)

    async def stop() -> None:
        leaving.signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait) == 0

    assert set(asyncio.run(load(cluster.url, 8, stop))) == {200}
    until(lambda: cluster.counters().get("workers_left") == 1)
    assert cluster.counters().get("workers_evicted", 0) == 0


def test_frozen_worker_is_evicted_and_its_batch_answered(cluster: Cluster) -> None:
    _, (frozen,), _ = cluster.all()
    frozen.signal(signal.SIGSTOP)

    async def thaw() -> None:
        await awaited(lambda: cluster.health()["workers"] == 0)
        cluster.worker()
        await awaited(lambda: cluster.health()["workers"] == 1)
        frozen.signal(signal.SIGCONT)
        await awaited(lambda: cluster.health()["workers"] == 2)

    assert set(asyncio.run(load(cluster.url, 4, thaw))) == {200}


def test_input_that_kills_its_worker_is_refused_and_its_neighbours_are_served(cluster: Cluster) -> None:
    """It ends two workers, or three when the second ends before an answer that it has given has left."""
    _, (worker,), _ = cluster.all()
    ended = 0

    async def poison() -> httpx.Response:
        nonlocal worker, ended
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("crash")))
            while not asked.done():
                if worker.process.poll() is not None:
                    worker, ended = cluster.worker(), ended + 1
                await asyncio.sleep(0.01)
            return await asked

    answers: list[httpx.Response] = []

    async def run() -> None:
        answers.append(await poison())

    assert set(asyncio.run(load(cluster.url, 4, run))) == {200}
    assert answers[0].status_code == 422
    assert answers[0].json()["error"]["code"] == "poison_input"
    assert ended in (2, 3)


def test_input_that_raises_fails_alone(cluster: Cluster) -> None:
    cluster.all()

    async def bad() -> None:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{cluster.url}/v1/embeddings", json=body("fine", "raise"), timeout=30)
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "the device failed on this input"

    assert set(asyncio.run(load(cluster.url, 4, bad))) == {200}


def test_without_a_broker_requests_fail_soon_and_work_again_when_it_is_back(cluster: Cluster) -> None:
    cluster.frontend("--broker-grace-s", "0.5")
    until(cluster.health)
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) <= 120
    assert httpx.get(f"{cluster.url}/v2/health/ready").status_code == 503
    assert httpx.get(f"{cluster.url}/v2/health/live").status_code == 200
    cluster.broker()
    cluster.worker()
    cluster.until_workers(1)
    assert httpx.post(f"{cluster.url}/v1/embeddings", json=body("a")).status_code == 200


def test_client_that_goes_away_takes_its_jobs_along(cluster: Cluster) -> None:
    cluster.all()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster.url}/v1/embeddings", json=body("slow 1.5"), timeout=0.3)
    until(lambda: cluster.counters().get("jobs_cancelled") == 1)
    assert cluster.health()["open_jobs"] == 0


def test_hung_inference_ends_with_its_deadline(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    cluster.frontend("--deadline-s", "1")
    cluster.until_workers(1)
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body("hang"), timeout=30)
    assert answer.status_code == 504


def test_worker_that_hangs_ends_itself_and_the_input_is_refused_in_the_end(cluster: Cluster) -> None:
    cluster.broker("--lease-s", "1")
    hung = [cluster.worker()]
    cluster.frontend()
    cluster.until_workers(1)

    async def hang() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("hang")))
            for _ in range(2):
                assert await asyncio.to_thread(hung[-1].wait) == 70
                hung.append(cluster.worker())
            assert (await asked).status_code == 422

    assert set(asyncio.run(load(cluster.url, 4, hang))) == {200}


def test_worker_that_hangs_does_not_hang_its_drain(cluster: Cluster) -> None:
    cluster.broker("--lease-s", "1")
    worker = cluster.worker()
    cluster.frontend("--deadline-s", "2")
    cluster.until_workers(1)
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{cluster.url}/v1/embeddings", json=body("hang"), timeout=0.3)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 70


def test_batches_form_across_clients(cluster: Cluster) -> None:
    cluster.all(requests=1)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=65)) as client:
            first = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("slow 1")))
            await awaited(lambda: cluster.health()["open_jobs"] == 1)
            rest = [
                asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body(f"text {one}")))
                for one in range(64)
            ]
            return [await first, *await asyncio.gather(*rest)]

    assert {answer.status_code for answer in asyncio.run(ask())} == {200}
    until(lambda: cluster.counters().get("jobs_answered") == 65)
    assert cluster.counters()["batches_dispatched"] <= 8


def test_several_frontend_processes_share_the_port_and_are_kept_running(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    frontend = cluster.frontend("--processes", "2")
    cluster.until_workers(1)

    async def both() -> None:
        await awaited(lambda: frontend.output.count("connected to broker") == 2)

    assert set(asyncio.run(load(cluster.url, 8, both))) == {200}
    for pid in descendants(frontend.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30).status_code == 200
    until(lambda: len(descendants(frontend.process.pid)) == 2)
    frontend.signal(signal.SIGTERM)
    assert frontend.wait(60) == 0


def test_frontend_processes_die_with_their_parent(cluster: Cluster) -> None:
    frontend = cluster.frontend("--processes", "2")
    until(lambda: len(descendants(frontend.process.pid)) == 2)
    children = descendants(frontend.process.pid)
    until(cluster.health)
    frontend.signal(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in children))


@pytest.mark.parametrize("order", ["bwf", "bfw", "wbf", "wfb", "fbw", "fwb"])
def test_start_order_does_not_matter(cluster: Cluster, order: str) -> None:
    start = {"b": cluster.broker, "w": cluster.worker, "f": cluster.frontend}
    for role in order:
        start[role]()
    cluster.until_workers(1)
    assert httpx.post(f"{cluster.url}/v1/embeddings", json=body("a")).status_code == 200


def test_everything_drains_on_sigterm(cluster: Cluster) -> None:
    broker, (worker,), frontend = cluster.all()

    async def stop() -> list[int]:
        async with httpx.AsyncClient(timeout=30) as client:
            asked = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("slow 0.5")))
            await awaited(lambda: cluster.health()["open_jobs"] == 1)
            statuses = []
            for program in (frontend, worker, broker):
                program.signal(signal.SIGTERM)
                statuses.append(await asyncio.to_thread(program.wait, 30))
                assert "draining" in program.output
                assert "drained with 0" in program.output
            assert right(await asked, ("slow 0.5",))
            return statuses

    assert asyncio.run(stop()) == [0, 0, 0]
