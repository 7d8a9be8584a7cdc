"""What others notice of a client that sends large requests and goes away, again and again: the three real programs."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.test_edges import bearer, entry
from tests.harness.clients import abandon, body, right
from tests.harness.processes import Cluster, until

#: Requests of 2,048 inputs a second: one and a half times as many as once stopped the broker.
PER_SECOND = 100
#: Answers that each other client must get while that goes on.
ANSWERS = 30


def make_request(key: str) -> bytes:
    """Return the bytes of a request for 2,048 vectors."""
    content = json.dumps({"model": "fake", "input": ["a"] * 2048}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def read_health(cluster: Cluster, key: str) -> dict[str, Any]:
    """Return what /health tells somebody with a key; nothing while nobody listens."""
    with contextlib.suppress(httpx.TransportError):
        return dict(httpx.get(f"{cluster.url}/health", headers=bearer(key), timeout=30).json())
    return {"open_jobs": -1, "counters": {}}


def count_attacks(cluster: Cluster, key: str) -> int:
    """Return how many large requests the broker has refused, or seen abandoned."""
    counters = read_health(cluster, key)["counters"]
    return int(counters.get("requests_rejected", 0) + counters.get("jobs_cancelled", 0) // 2048)


async def ask_beside(cluster: Cluster, attacker: str, others: list[str]) -> None:
    """Let other clients ask for vectors until each has got some, while one client abandons large requests."""

    async def ask(client: httpx.AsyncClient, key: str) -> None:
        for number in range(ANSWERS):
            text = f"{key} {number}"
            answer = await client.post(f"{cluster.url}/v1/embeddings", json=body(text), headers=bearer(key))
            assert answer.status_code == 200, answer.text
            assert right(answer, (text,))

    attack = asyncio.create_task(abandon(cluster.port, make_request(attacker), PER_SECOND))
    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.to_thread(until, lambda: count_attacks(cluster, others[0]) > 50)
        await asyncio.wait_for(asyncio.gather(*(ask(client, key) for key in others)), 60)
    assert not attack.done()
    attack.cancel()
    await asyncio.wait([attack])
    await asyncio.to_thread(until, lambda: read_health(cluster, others[0])["open_jobs"] == 0)
    counters = read_health(cluster, others[0])["counters"]
    if attacker not in others:
        assert counters["requests_rejected"] > 0
    assert (counters.get("workers_evicted", 0), counters.get("workers_left", 0)) == (0, 0)


@pytest.mark.parametrize(
    ("attacker", "others"),
    [("attacker", ["one", "two", "three", "four"]), ("same", ["same"] * 4)],
    ids=["different clients", "one client by all that the server can tell"],
)
def test_abandoned_requests_starve_nobody_without_keys(cluster: Cluster, attacker: str, others: list[str]) -> None:
    cluster.all(workers=2, us_per_token=300)
    asyncio.run(ask_beside(cluster, attacker, others))


def test_abandoned_requests_starve_nobody_with_keys(cluster: Cluster, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    names = ["one", "two", "three", "four"]
    keys.write_text(entry("attacker", "attacker", "jobs_in_flight = 2048") + "".join(entry(one, one) for one in names))
    cluster.broker()
    for _ in range(2):
        cluster.worker(us_per_token=300)
    cluster.frontend("--api-keys", str(keys), environ={"API_KEY": ""})
    asyncio.run(ask_beside(cluster, "attacker", names))


@pytest.mark.parametrize("size", [70_000, 100_000, 120_000])
@pytest.mark.parametrize("behind", [b"", b"x" * 100_000], ids=["alone", "with more behind it"])
def test_client_that_leaves_is_seen_whatever_it_sent(cluster: Cluster, size: int, behind: bytes) -> None:
    """Its jobs would never end by themselves."""
    cluster.all()
    content = json.dumps(body("wait for-ever", *["a" * 60] * (size // 63))).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", cluster.port)) as client:
        client.sendall(head + content + behind)
        until(lambda: cluster.number("open_jobs") > 0)
    until(lambda: cluster.number("open_jobs") == 0)
    assert cluster.count("jobs_cancelled") > 0
