"""HTTP clients that are not libraries of embeddings: JDK's HttpClient, curl and wget."""

import asyncio
import gzip
import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.counting_proxy import CountingProxy
from tests.clients.golden import GOLDEN, KEY, TEXTS, TOO_LONG, check_answer, make_body
from tests.harness.servers import Server

JDK_CLIENT = Path(__file__).parent / "programs/JdkClient.java"
JSON = ("-H", "Content-Type: application/json")
BEARER = ("-H", f"Authorization: Bearer {KEY}")


def run(command: list[str], content: bytes = b"") -> str:
    """Return what a program prints."""
    done = subprocess.run(command, input=content, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def curl(*arguments: str, content: bytes = b"") -> str:
    """Return what curl prints."""
    return run(["curl", "-sS", *arguments], content)


# --- JDK -------------------------------------------------------------------------------------------------------------


def post_with_jdk(url: str, texts: str | list[str], times: int) -> list[str]:
    """Return the lines that JDK's client prints: version, status, and body of each answer."""
    body = json.dumps(make_body(texts))
    return run(["java", str(JDK_CLIENT), f"{url}/v1/embeddings", KEY, body, str(times)]).splitlines()


def test_jdk_client_keeps_its_connection(server: Server) -> None:
    async def post() -> tuple[list[str], int]:
        async with CountingProxy(server.port).listen() as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            return (await asyncio.to_thread(post_with_jdk, url, TEXTS[:4], 40)), proxy.connections

    answers, connections = asyncio.run(post())
    assert len(answers) == 40
    for answer in answers:
        assert answer.startswith("HTTP_1_1 200 ")
        check_answer(json.loads(answer.split(" ", 2)[2]), GOLDEN[:4])
    assert connections == 1


def test_jdk_client_reads_single_vector_and_error(server: Server) -> None:
    (answer,) = post_with_jdk(server.url, TEXTS[0], 1)
    check_answer(json.loads(answer.removeprefix("HTTP_1_1 200 ")), GOLDEN[:1])
    (refusal,) = post_with_jdk(server.url, TOO_LONG["text"], 1)
    assert json.loads(refusal.removeprefix("HTTP_1_1 400 "))["error"]["code"] == "context_length_exceeded"


# --- curl and wget ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")])
def test_curl_with_gzip_body(server: Server, options: tuple[str, ...]) -> None:
    url = f"{server.url}/v1/embeddings"
    options = (*BEARER, *JSON, *options, "-H", "Content-Encoding: gzip", "--data-binary", "@-")
    for texts, rows in ((TEXTS[0], GOLDEN[:1]), (TEXTS, GOLDEN)):
        body = gzip.compress(json.dumps(make_body(texts)).encode())
        check_answer(json.loads(curl(url, *options, content=body)), rows)
    cut = curl(url, *options, "-w", "%{http_code}", content=body[:-9])
    assert cut.endswith("400")
    assert json.loads(cut[:-3])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("header", ["Authorization: Bearer", "authorization: bearer", "api-key:", "x-api-key:"])
def test_curl_with_api_key(server: Server, header: str) -> None:
    url, body = f"{server.url}/v1/embeddings", json.dumps(make_body(TEXTS))
    check_answer(json.loads(curl(url, *JSON, "-H", f"{header} {KEY}", "-d", body)))
    wrong = json.loads(curl(url, *JSON, "-H", f"{header} other", "-d", body))
    assert wrong["error"]["code"] == "invalid_api_key"


def test_curl_head_equals_get_without_content(server: Server) -> None:
    url = f"{server.url}/v1/models"
    head = curl("-I", *BEARER, url).lower()
    length = len(curl(*BEARER, url).encode())
    assert head.startswith("http/1.1 200")
    assert f"content-length: {length}\r\n" in head


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/health/live", "/v1/models"])
def test_wget_spider_as_health_check(server: Server, path: str) -> None:
    run(["wget", "-q", "--tries=1", "--spider", f"--header=Authorization: Bearer {KEY}", server.url + path])


def test_wget_posts_a_body(server: Server) -> None:
    body = json.dumps(make_body(TEXTS))
    command = ["wget", "-q", "-O-", f"--header=Authorization: Bearer {KEY}", f"--post-data={body}"]
    check_answer(json.loads(run([*command, f"{server.url}/v1/embeddings"])))
