"""Clients that send large requests and leave, and what other clients notice of them. Real processes."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.api_keys import make_entry, make_header
from tests.harness.clients import abandon, body, right
from tests.harness.processes import Cluster, until

#: Requests of 2,048 inputs per second.
PER_SECOND = 100
#: Number of answers that each of the other clients must get in the meantime.
MIN_ANSWERS = 30


def make_request(key: str) -> bytes:
    """Return the bytes of a request for 2,048 vectors."""
    content = json.dumps({"model": "fake", "input": ["a"] * 2048}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def read_health(cluster: Cluster, key: str) -> dict[str, Any]:
    """Return /health, or zero counts if the frontend does not answer."""
    with contextlib.suppress(httpx.TransportError):
        return dict(httpx.get(f"{cluster.url}/health", headers=make_header(key), timeout=30).json())
    return {"open_jobs": -1, "counters": {}}


def count_attacks(cluster: Cluster, key: str) -> int:
    """Return the number of large requests that were rejected or abandoned."""
    counters = read_health(cluster, key)["counters"]
    return int(counters.get("requests_rejected", 0) + counters.get("jobs_cancelled", 0) // 2048)


async def compete_with_attacker(cluster: Cluster, attacker: str, others: list[str]) -> None:
    """Request vectors as other clients while one client abandons large requests."""

    async def request_vectors(client: httpx.AsyncClient, key: str) -> None:
        for number in range(MIN_ANSWERS):
            text = f"{key} {number}"
            answer = await client.post(f"{cluster.url}/v1/embeddings", json=body(text), headers=make_header(key))
            assert answer.status_code == 200, answer.text
            assert right(answer, (text,))

    attack = asyncio.create_task(abandon(cluster.port, make_request(attacker), PER_SECOND))
    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.to_thread(until, lambda: count_attacks(cluster, others[0]) > 50)
        await asyncio.wait_for(asyncio.gather(*(request_vectors(client, key) for key in others)), 60)
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
    ids=["different clients", "one client"],
)
def test_abandoned_requests_do_not_starve_others_without_keys(
    cluster: Cluster, attacker: str, others: list[str]
) -> None:
    cluster.all(workers=2, us_per_token=300)
    asyncio.run(compete_with_attacker(cluster, attacker, others))


def test_abandoned_requests_do_not_starve_others_with_keys(cluster: Cluster, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    names = ["one", "two", "three", "four"]
    keys.write_text(
        make_entry("attacker", "attacker", jobs_in_flight=2048) + "".join(make_entry(name, name) for name in names)
    )
    cluster.broker()
    for _ in range(2):
        cluster.worker(us_per_token=300)
    cluster.frontend("--api-keys", str(keys), environ={"API_KEY": ""})
    asyncio.run(compete_with_attacker(cluster, "attacker", names))


@pytest.mark.parametrize("size", [70_000, 100_000, 120_000])
@pytest.mark.parametrize("behind", [b"", b"x" * 100_000], ids=["alone", "followed by bytes"])
def test_departed_client_is_noticed_whatever_it_sent(cluster: Cluster, size: int, behind: bytes) -> None:
    """The jobs never end by themselves."""
    cluster.all()
    content = json.dumps(body("wait for-ever", *["a" * 60] * (size // 63))).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", cluster.port)) as client:
        client.sendall(head + content + behind)
        until(lambda: cluster.number("open_jobs") > 0)
    until(lambda: cluster.number("open_jobs") == 0)
    assert cluster.count("jobs_cancelled") > 0
