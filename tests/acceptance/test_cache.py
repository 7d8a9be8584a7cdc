"""Cache and coalescing with real processes: order, headers, requests that switch them off, keys, and a lost worker."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.harness.api_keys import make_entry, make_header
from tests.harness.clients import body, right
from tests.harness.processes import Cluster, until

CACHE = ("--cache-bytes", "1000000")


def start(cluster: Cluster, *flags: str) -> None:
    cluster.broker(*CACHE)
    cluster.worker()
    cluster.frontend(*flags)


def embed(cluster: Cluster, *texts: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Return an answer after checking its vectors."""
    content = body(*texts) | fields
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=content, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    if content["encoding_format"] == "base64" and "dimensions" not in content:
        assert right(answer, texts)
    return answer


def test_known_inputs_are_answered_from_memory(cluster: Cluster) -> None:
    start(cluster)
    cluster.until_workers(1)
    name = "x-vecmill-cache"
    assert embed(cluster, "a").headers[name] == "hit=0, coalesced=0, computed=1"
    mixed = embed(cluster, "b", "a", "c", "b")
    assert mixed.headers[name] == "hit=1, coalesced=1, computed=2"
    again = embed(cluster, "b", "a", "c", "b")
    assert again.headers[name] == "hit=4, coalesced=0, computed=0"
    assert again.json()["usage"] == mixed.json()["usage"]
    assert again.json()["data"] == mixed.json()["data"]
    # One entry serves floats, base64 and shortened vectors.
    floats = embed(cluster, "a", encoding_format="float", dimensions=4)
    assert floats.headers[name] == "hit=1, coalesced=0, computed=0"
    assert len(floats.json()["data"][0]["embedding"]) == 4
    # A prompt, the side of truncation, and vectors before normalization are other inputs.
    assert embed(cluster, "a", truncate="start").headers[name].endswith("computed=1")
    assert embed(cluster, "a", truncate="end").headers[name].endswith("computed=1")
    content = body("a") | {"input_type": "query"}
    assert httpx.post(f"{cluster.url}/v1/embeddings", json=content).headers[name].endswith("computed=1")
    # The client can switch the cache off.
    assert embed(cluster, "a", headers={"Cache-Control": "no-store"}).headers[name].endswith("computed=1")
    assert embed(cluster, "new", headers={"Cache-Control": "no-cache"}).headers[name].endswith("computed=1")
    assert embed(cluster, "new").headers[name].startswith("hit=1")
    metrics = httpx.get(f"http://{cluster.metrics_bind}/metrics").text
    assert "vecmill_cache_hits_total 7.0" in metrics
    assert "vecmill_cache_coalesced_total 1.0" in metrics


def test_keys_share_no_results(cluster: Cluster, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(make_entry("one", "secret-1") + make_entry("two", "secret-2", admin=True))
    start(cluster, "--api-keys", str(keys))
    url = f"{cluster.url}/health"
    until(lambda: _count_workers(url, make_header("secret-2")) == 1)
    for key, found in (("secret-1", 0), ("secret-2", 0), ("secret-1", 1), ("secret-2", 1)):
        answer = embed(cluster, "a", headers=make_header(key))
        assert answer.headers["x-vecmill-cache"] == f"hit={found}, coalesced=0, computed={1 - found}"


def _count_workers(url: str, headers: dict[str, str]) -> object:
    try:
        return httpx.get(url, headers=headers).json().get("workers")
    except httpx.TransportError:
        return None


def test_flood_of_one_text_survives_its_worker(cluster: Cluster) -> None:
    """The text is computed once, although the worker that computes it is killed, and each request is answered."""
    start(cluster)
    cluster.until_workers(1)
    text = "wait go"

    async def flood() -> None:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=50)) as client:

            async def request() -> httpx.Response:
                return await client.post(f"{cluster.url}/v1/embeddings", json=body(text))

            tasks = [asyncio.create_task(request()) for _ in range(50)]
            await asyncio.to_thread(until, lambda: cluster.number("open_jobs") == 50)
            second = await asyncio.to_thread(cluster.worker)
            await asyncio.to_thread(cluster.until_workers, 2)
            cluster.programs[1].close()
            (cluster.folder / "go").touch()
            answers = await asyncio.gather(*tasks)
            assert all(right(answer, (text,)) for answer in answers)
            assert second.process.poll() is None

    asyncio.run(flood())
    assert until(lambda: cluster.count("jobs_answered") == 50)
    counters = cluster.counters()
    assert counters["cache_misses"] == 1
    assert counters["cache_hits"] + counters["cache_coalesced"] == 49
    assert counters["jobs_dispatched"] == 2


def test_zero_bytes_compute_every_input(cluster: Cluster) -> None:
    cluster.broker("--cache-bytes", "0")
    cluster.worker()
    cluster.frontend()
    cluster.until_workers(1)
    for _ in range(2):
        assert embed(cluster, "a", "a").headers["x-vecmill-cache"] == "hit=0, coalesced=0, computed=2"
