"""Failures as clients see them: the three real programs, with a fake model."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.harness.clients import awaited, body, load, right
from tests.harness.processes import Cluster, alive, descendants, until


def test_killed_workers_batch_is_answered_by_another(cluster: Cluster) -> None:
    _, (doomed, _), _ = cluster.all(workers=2)

    async def kill_worker() -> None:
        doomed.signal(signal.SIGKILL)
        await awaited(lambda: cluster.health()["workers"] == 1)

    statuses = asyncio.run(load(cluster.url, 8, kill_worker))
    assert set(statuses) == {200}


def test_restarted_only_worker_loses_no_request(cluster: Cluster) -> None:
    _, (doomed,), _ = cluster.all()

    async def replace_worker() -> None:
        doomed.signal(signal.SIGKILL)
        await asyncio.to_thread(doomed.wait)
        cluster.worker()

    assert set(asyncio.run(load(cluster.url, 8, replace_worker))) == {200}


def test_killed_idle_workers_are_evicted_at_once(cluster: Cluster) -> None:
    broker = cluster.broker()
    workers = [cluster.worker() for _ in range(12)]
    cluster.frontend()
    cluster.until_workers(12)
    for left in range(11, -1, -1):
        workers.pop().signal(signal.SIGKILL)
        until(lambda left=left: cluster.health()["workers"] == left)  # type: ignore[misc]
    assert broker.output.count("connection lost") == 12


def test_reading_frontend_is_never_rejected_for_unread_answers(cluster: Cluster) -> None:
    """The frontend confirms answers, so that a small limit on unread bytes holds even across a broker restart."""
    broker = cluster.broker("--max-unread-bytes", "20000")
    cluster.worker()
    cluster.frontend()
    cluster.until_workers(1)

    async def replace_broker() -> None:
        # 32 bytes per vector: many times the limit.
        await awaited(lambda: cluster.count("jobs_answered") > 3000)
        broker.signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait)
        cluster.broker("--max-unread-bytes", "20000")
        await awaited(lambda: cluster.health().get("workers") == 1)
        await awaited(lambda: cluster.count("jobs_answered") > 3000)

    assert set(asyncio.run(load(cluster.url, 4, replace_broker))) == {200}


def test_clients_have_separate_limits(cluster: Cluster) -> None:
    cluster.broker("--max-jobs", "8")
    cluster.worker()
    cluster.frontend()
    cluster.until_workers(1)

    async def post_texts(client: httpx.AsyncClient, key: str, *texts: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await client.post(f"{cluster.url}/v1/embeddings", json=body(*texts), headers=headers)

    async def compare_clients() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            flood = asyncio.create_task(post_texts(client, "one", "slow 1", "a", "b", "c"))
            await awaited(lambda: cluster.health()["open_jobs"] == 4)
            rejected = await post_texts(client, "one", "d")
            served = await post_texts(client, "two", "e")
            assert (rejected.status_code, served.status_code, (await flood).status_code) == (429, 200, 200)
            assert rejected.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(rejected.headers["retry-after"]) <= 120

    asyncio.run(compare_clients())


def test_restarted_broker_loses_no_request(cluster: Cluster) -> None:
    broker, _, _ = cluster.all(workers=2)

    async def replace_broker() -> None:
        broker.signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait)
        cluster.broker()

    assert set(asyncio.run(load(cluster.url, 8, replace_broker))) == {200}


def test_new_worker_gets_batches_at_once(cluster: Cluster) -> None:
    cluster.all()

    async def start_worker() -> None:
        cluster.worker()
        await awaited(lambda: [worker for worker in cluster.workers() if worker["answered_jobs"]][1:])

    assert set(asyncio.run(load(cluster.url, 8, start_worker))) == {200}


def test_worker_stopped_under_load_drains(cluster: Cluster) -> None:
    _, (leaving, _), _ = cluster.all(workers=2)

    async def stop_worker() -> None:
        leaving.signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait) == 0

    assert set(asyncio.run(load(cluster.url, 8, stop_worker))) == {200}
    until(lambda: cluster.counters().get("workers_left") == 1)
    assert cluster.counters().get("workers_evicted", 0) == 0


def test_frozen_worker_is_evicted_and_its_batch_answered(cluster: Cluster) -> None:
    _, (frozen,), _ = cluster.all()
    frozen.signal(signal.SIGSTOP)

    async def await_eviction_and_thaw() -> None:
        await awaited(lambda: cluster.health()["workers"] == 0)
        cluster.worker()
        await awaited(lambda: cluster.health()["workers"] == 1)
        frozen.signal(signal.SIGCONT)
        await awaited(lambda: cluster.health()["workers"] == 2)

    assert set(asyncio.run(load(cluster.url, 4, await_eviction_and_thaw))) == {200}


def test_input_that_kills_workers_is_poison(cluster: Cluster) -> None:
    """Two workers end, or three if the second one ends before its last answer was sent."""
    _, (worker,), _ = cluster.all()
    ended = 0

    async def post_poison() -> httpx.Response:
        nonlocal worker, ended
        async with httpx.AsyncClient(timeout=60) as client:
            pending = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("crash")))
            while not pending.done():
                if worker.process.poll() is not None:
                    worker, ended = cluster.worker(), ended + 1
                await asyncio.sleep(0.01)
            return await pending

    answers: list[httpx.Response] = []

    async def send_poison() -> None:
        answers.append(await post_poison())

    assert set(asyncio.run(load(cluster.url, 4, send_poison))) == {200}
    assert answers[0].status_code == 422
    assert answers[0].json()["error"]["code"] == "poison_input"
    assert ended in (2, 3)


def test_input_that_raises_fails_alone(cluster: Cluster) -> None:
    cluster.all()

    async def post_failing_input() -> None:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{cluster.url}/v1/embeddings", json=body("fine", "raise"), timeout=30)
            assert answer.status_code == 500
            assert answer.json()["error"]["message"].startswith("input 1: the device failed on this input")

    assert set(asyncio.run(load(cluster.url, 4, post_failing_input))) == {200}


def test_requests_fail_without_broker_and_recover_later(cluster: Cluster) -> None:
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


def test_jobs_of_departed_client_are_cancelled(cluster: Cluster) -> None:
    cluster.all()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster.url}/v1/embeddings", json=body("slow 1.5"), timeout=0.3)
    until(lambda: cluster.counters().get("jobs_cancelled") == 1)
    assert cluster.health()["open_jobs"] == 0


def test_hung_inference_fails_at_its_deadline(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    cluster.frontend("--deadline-s", "1")
    cluster.until_workers(1)
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body("hang"), timeout=30)
    assert answer.status_code == 504


def test_input_that_hangs_workers_is_poison(cluster: Cluster) -> None:
    cluster.broker("--lease-s", "1")
    hung = [cluster.worker()]
    cluster.frontend()
    cluster.until_workers(1)

    async def post_hanging_input() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            pending = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("hang")))
            for _ in range(2):
                assert await asyncio.to_thread(hung[-1].wait) == 70
                hung.append(cluster.worker())
            assert (await pending).status_code == 422

    assert set(asyncio.run(load(cluster.url, 4, post_hanging_input))) == {200}


def test_hung_worker_still_ends_on_sigterm(cluster: Cluster) -> None:
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

    async def post_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=65)) as client:
            first = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("slow 1")))
            await awaited(lambda: cluster.health()["open_jobs"] == 1)
            rest = [
                asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body(f"text {number}")))
                for number in range(64)
            ]
            return [await first, *await asyncio.gather(*rest)]

    assert {answer.status_code for answer in asyncio.run(post_all())} == {200}
    until(lambda: cluster.counters().get("jobs_answered") == 65)
    assert cluster.counters()["batches_dispatched"] <= 8


def test_frontend_processes_share_port_and_are_restarted(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    frontend = cluster.frontend("--processes", "2")
    cluster.until_workers(1)

    async def await_connections() -> None:
        await awaited(lambda: frontend.output.count("connected to broker") == 2)

    assert set(asyncio.run(load(cluster.url, 8, await_connections))) == {200}
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


def test_all_processes_drain_on_sigterm(cluster: Cluster) -> None:
    broker, (worker,), frontend = cluster.all()

    async def stop_all() -> list[int]:
        async with httpx.AsyncClient(timeout=30) as client:
            pending = asyncio.create_task(client.post(f"{cluster.url}/v1/embeddings", json=body("slow 0.5")))
            await awaited(lambda: cluster.health()["open_jobs"] == 1)
            statuses = []
            for program in (frontend, worker, broker):
                program.signal(signal.SIGTERM)
                statuses.append(await asyncio.to_thread(program.wait, 30))
                assert "draining" in program.output
                assert "drained with 0" in program.output
            assert right(await pending, ("slow 0.5",))
            return statuses

    assert asyncio.run(stop_all()) == [0, 0, 0]
