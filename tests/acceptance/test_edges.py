"""The edges of the server: keys, quotas, CORS, TLS, request ids, logs, and clients that are too slow. Fake workers."""

import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.clients import body
from tests.harness.fake_worker import MAX_TOKENS
from tests.harness.processes import Cluster, until

KEY, OTHER, ADMIN = "vm-key", "vm-other", "vm-admin"


def entry(name: str, key: str, *lines: str) -> str:
    """A key's entry in the file."""
    return "\n".join(
        ["[[key]]", f'name = "{name}"', f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"', *lines, ""]
    )


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def locked(cluster: Cluster) -> Cluster:
    """A cluster that wants keys."""
    keys = entry("one", KEY, "jobs_in_flight = 3") + entry("two", OTHER, "tokens_per_minute = 60")
    (cluster.folder / "keys.toml").write_text(keys + entry("root", ADMIN, "admin = true"))
    cluster.broker()
    cluster.worker()
    cluster.frontend("--api-keys", str(cluster.folder / "keys.toml"), environ={"API_KEY": "of the environment"})
    until(lambda: ready(cluster), what="the cluster")
    return cluster


def ready(cluster: Cluster, path: str = "/v2/health/ready") -> bool:
    """Whether an embedding would be answered, or whatever else a path tells that needs no key."""
    try:
        return httpx.get(cluster.url + path).status_code == 200
    except httpx.TransportError:
        return False


def embed(cluster: Cluster, *texts: str, key: str = KEY, **headers: str) -> httpx.Response:
    """A request with a key."""
    headers = bearer(key) | headers
    return httpx.post(f"{cluster.url}/v1/embeddings", json=body(*texts), headers=headers, timeout=30)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method_and_path", ["POST /v1/embeddings", "GET /v1/models", "GET /v1/config", "GET /metrics"])
def test_paths_are_closed_without_a_key(locked: Cluster, method_and_path: str) -> None:
    method, path = method_and_path.split()
    for headers in ({}, bearer("wrong"), {"Authorization": KEY}):
        answer = httpx.request(method, locked.url + path, headers=headers, json={})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"] == {
            "message": "Unauthorized request due to invalid or missing api-key",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }


def test_keys_of_file_and_environment_open_and_probes_need_none(locked: Cluster) -> None:
    for key in (KEY, OTHER, ADMIN, "of the environment"):
        assert embed(locked, "a", key=key).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert httpx.get(locked.url + path).status_code == 200


def test_reload_is_for_operators_and_takes_new_keys_at_once(locked: Cluster) -> None:
    reload = f"{locked.url}/v1/config/reload"
    path = locked.folder / "keys.toml"
    assert httpx.post(reload, headers=bearer(KEY)).status_code == 403
    unchanged = httpx.post(reload, headers=bearer(ADMIN))
    assert unchanged.status_code == 200
    assert unchanged.json() == httpx.get(f"{locked.url}/v1/config", headers=bearer(KEY)).json()
    path.write_text(path.read_text() + entry("new", "vm-new"))
    assert httpx.post(reload, headers=bearer("of the environment")).status_code == 201
    assert httpx.post(reload, headers=bearer("of the environment")).status_code == 200
    assert embed(locked, "a", key="vm-new").status_code == 200
    path.write_text("[[key")
    broken = httpx.post(reload, headers=bearer(ADMIN))
    assert broken.status_code == 500
    message = "Reloading config file failed. Check server logs for more info."
    assert broken.json()["error"]["message"] == message
    assert embed(locked, "a", key="vm-new").status_code == 200


def test_changed_file_is_read_by_itself(locked: Cluster) -> None:
    path = locked.folder / "keys.toml"
    path.write_text(entry("late", "vm-late"))
    until(lambda: embed(locked, "a", key="vm-late").status_code == 200, what="the new key")
    until(lambda: embed(locked, "a").status_code == 401, what="the old key's end")


def test_keys_have_their_own_quotas(locked: Cluster) -> None:
    too_many = embed(locked, *"abcd")
    assert too_many.status_code == 400
    assert "its key may have 3 open at once" in too_many.json()["error"]["message"]
    # 200 bytes are some 60 tokens by the first estimate, and the exact number is 200.
    assert embed(locked, "x" * 50, "y" * 50, "z" * 50, "u" * 50, key=OTHER).status_code == 200
    answer = embed(locked, "x" * 50, key=OTHER)
    assert answer.status_code == 429
    assert "this key may use 60 tokens a minute" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert embed(locked, "x" * 50, key=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--api-keys", "/nowhere/keys.toml"), "/nowhere/keys.toml cannot be used"),
        (("--tls-cert", "/nowhere/cert.pem", "--processes", "2"), "the certificate /nowhere/cert.pem and the key"),
        (("--tls-key", "/nowhere/key.pem"), "tls_key is given without tls_cert"),
    ],
)
def test_file_that_cannot_be_used_ends_the_start_with_a_sentence(
    cluster: Cluster, flags: tuple[str, ...], told: str
) -> None:
    program = cluster.frontend(*flags)
    assert program.wait() == 2
    assert told in program.output
    assert program.output.count("\n") == 1


# --- request ids, CORS, TLS ------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id(locked: Cluster) -> None:
    taken = embed(locked, "a", **{"x-request-id": "my-id!"})
    assert taken.headers["x-request-id"] == "my-id!"
    for given in ("", "x" * 129, "two words"):
        own = embed(locked, "a", **{"x-request-id": given}).headers["x-request-id"]
        assert len(own) == 32
    unknown = httpx.get(f"{locked.url}/nothing", headers=bearer(KEY) | {"x-request-id": "id"})
    assert (unknown.status_code, unknown.headers["x-request-id"]) == (404, "id")
    wrong_method = httpx.put(f"{locked.url}/v1/models", headers=bearer(KEY) | {"x-request-id": "id"})
    assert (wrong_method.status_code, wrong_method.headers["x-request-id"]) == (405, "id")
    assert httpx.get(f"{locked.url}/v1/models").headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no HTTP\r\n\r\n", b"400"),
        (b"GET /v1/models HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /v1/models HTTP/1.1\r\nx: ", b"408"),
        # Without a key nobody waits for the body.
        (b"POST /v1/embeddings HTTP/1.1\r\nConnection: close\r\nContent-Length: 9\r\n\r\n", b"401"),
    ],
)
def test_what_is_no_whole_request_is_told_so_with_an_id(cluster: Cluster, sent: bytes, status: bytes) -> None:
    cluster.frontend("--request-timeout-s", "1", environ={"API_KEY": KEY})
    until(lambda: ready(cluster, "/v2/health/live"), what="the frontend")
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = connection.recv(65536)
    assert answer.split()[1] == status
    assert b"x-request-id: " in answer


def test_browser_of_another_origin_can_send_a_key(locked: Cluster) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
    }
    preflight = httpx.options(f"{locked.url}/v1/embeddings", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    assert int(preflight.headers["access-control-max-age"]) > 0
    for key in (KEY, "wrong"):
        answer = embed(locked, "a", key=key, Origin="https://app.example")
        assert answer.status_code == (200 if key == KEY else 401)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in embed(locked, "a").headers


def test_options_without_an_origin_tells_the_methods(locked: Cluster) -> None:
    answer = httpx.options(f"{locked.url}/v1/models")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, OPTIONS")


@pytest.mark.parametrize(
    ("allowed", "origin", "told"),
    [
        ("https://a.example, https://b.example", "https://b.example", "https://b.example"),
        ("https://a.example", "https://b.example", None),
        ("", "https://a.example", None),
    ],
)
def test_origins_can_be_named(cluster: Cluster, allowed: str, origin: str, told: str | None) -> None:
    cluster.broker()
    cluster.frontend("--allowed-origins", allowed)
    until(lambda: cluster.health(), what="the frontend")
    answer = httpx.get(f"{cluster.url}/v2/health/live", headers={"Origin": origin})
    assert answer.headers.get("access-control-allow-origin") == told
    assert answer.headers.get("vary") == ("Origin" if allowed else None)
    of_no_page = httpx.get(f"{cluster.url}/v2/health/live").headers
    assert "access-control-allow-origin" not in of_no_page
    assert of_no_page.get("vary") == answer.headers.get("vary")


def test_key_with_a_pass_phrase_ends_the_start_and_asks_nobody(
    cluster: Cluster, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-in", str(key), "-aes128", "-passout", "pass:abcd", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    program = cluster.frontend("--tls-cert", str(cert), "--tls-key", str(locked))
    assert program.wait() == 2
    assert f"the key {locked} cannot be used" in program.output
    assert program.output.count("\n") == 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_tls_by_a_certificate_of_ones_own(cluster: Cluster, certificate: tuple[Path, Path], processes: str) -> None:
    cert, key = certificate
    cluster.broker()
    cluster.worker()
    cluster.frontend("--tls-cert", str(cert), "--tls-key", str(key), "--processes", processes)
    trusted = ssl.create_default_context(cafile=str(cert))
    url = f"https://127.0.0.1:{cluster.port}"

    def answered() -> Any:
        try:
            with httpx.Client(verify=trusted) as client:
                return client.post(f"{url}/v1/embeddings", json=body("a")).status_code == 200
        except httpx.TransportError:
            return False

    until(answered, what="an answer over TLS")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{cluster.port}/v2/health/live")


# --- slow clients ----------------------------------------------------------------------------------------------------

#: What Sanic would give an answer on a connection that it closes: nothing, so that it shows if anything depends on it.
HASTE = {"SANIC_GRACEFUL_TCP_CLOSE_TIMEOUT": "0"}


@pytest.fixture(params=["plain", "tls"])
def hasty(cluster: Cluster, certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose vectors are long and whose patience is short."""
    cert, key = map(str, certificate)
    flags = ["--tls-cert", cert, "--tls-key", key] if request.param == "tls" else []
    cluster.broker()
    cluster.worker(dimension=4096)
    cluster.frontend("--send-timeout-s", "0.5", "--request-timeout-s", "0.5", *flags, environ=HASTE)
    url = cluster.url.replace("http:", "https:") if flags else cluster.url
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=cert)) as client:
        until(lambda: answers(client, "/v2/health/ready"), what="the cluster")
        yield cluster
        assert client.post("/v1/embeddings", json=body("a")).status_code == 200


def answers(client: httpx.Client, path: str) -> bool:
    """Whether a path is well; a new connection each time."""
    try:
        return client.get(path, headers={"Connection": "close"}).status_code == 200
    except httpx.TransportError:
        return False


def connected(cluster: Cluster, tmp_path: Path, receive_buffer: int = 0) -> socket.socket:
    """A connection as the fixture wants it, over TLS or not."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", cluster.port))
    if "--tls-cert" not in cluster.programs[-1].process.args:  # type: ignore[operator]
        return connection
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    return trusted.wrap_socket(connection, server_hostname="127.0.0.1")


def request(*texts: str) -> bytes:
    """A request's bytes."""
    content = json.dumps(body(*texts)).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def far_end(connection: socket.socket) -> str:
    """The other end of a connection on this host, as its process has it among its descriptors; empty without one."""
    port = f":{connection.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    return next((f"socket:[{row[9]}]" for row in rows if row[2].endswith(port) and row[9] != "0"), "")


def descriptors(cluster: Cluster) -> set[str]:
    """What the frontend holds open."""
    found = set()
    for link in Path(f"/proc/{cluster.programs[-1].process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return found


def test_client_that_does_not_read_its_answer_is_cut_off(hasty: Cluster, tmp_path: Path) -> None:
    with connected(hasty, tmp_path, 4096) as connection:
        # 40 MB of answer, far more than the kernel's buffers take.
        connection.sendall(request(*(str(number) for number in range(2000))))
        end = until(lambda: far_end(connection), what="the connection")
        assert end in descriptors(hasty)
        until(lambda: end not in descriptors(hasty), what="the end of the connection")


def test_client_that_reads_slowly_but_steadily_gets_it_all(hasty: Cluster, tmp_path: Path) -> None:
    with connected(hasty, tmp_path, 65536) as connection:
        connection.sendall(request(*(str(number) for number in range(1000))).replace(b"Host: a", b"Connection: close"))
        received = bytearray()
        while part := connection.recv(16384):
            received += part
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert len(json.loads(answer)["data"]) == 1000


def test_connection_without_a_request_is_ended(hasty: Cluster, tmp_path: Path) -> None:
    with connected(hasty, tmp_path) as connection:
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    ("begun", "going_on", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n", b"x: y\r\n", b"408"),
        (b"POST /nothing HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b"x", b"404"),
    ],
    ids=["head", "body that nobody wants"],
)
def test_client_that_trickles_is_cut_off(
    hasty: Cluster, tmp_path: Path, begun: bytes, going_on: bytes, status: bytes
) -> None:
    answer, ended = b"", False
    with connected(hasty, tmp_path) as connection:
        connection.sendall(begun)
        connection.settimeout(0.05)
        for _ in range(400):
            try:
                connection.sendall(going_on)
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                part = b""
            answer += part
            if not part:
                ended = True
                break
    assert answer.split()[1] == status
    assert ended


# --- logs ------------------------------------------------------------------------------------------------------------

SECRET = "zebra-in-the-cellar"


def test_logs_are_json_with_ids_and_without_any_text_of_users(cluster: Cluster) -> None:
    flags = ("--log-format", "json", "--log-level", "debug")
    cluster.broker(*flags)
    cluster.worker(*flags)
    cluster.frontend(*flags)
    cluster.until_workers(1)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "request-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    url = f"{cluster.url}/v1/embeddings"
    assert httpx.post(url, json=body(SECRET), headers=headers).status_code == 200
    bad = [
        {"model": SECRET, "input": SECRET},
        {"model": "fake", "input": SECRET * 100},
        {"model": "fake", "input": [SECRET, 1]},
        {"model": "fake", "input": SECRET, "prompt_name": SECRET},
        body(SECRET, "raise"),
        body("nan", SECRET),
    ]
    assert {httpx.post(url, json=one, headers={"x-request-id": "request-2"}).status_code for one in bad} == {
        400,
        404,
        500,
    }
    assert httpx.post(url, content=b'{"input": "' + SECRET.encode()).status_code == 400
    cluster.worker(*flags)
    cluster.until_workers(2)
    assert httpx.post(url, json=body("once x crash", SECRET), timeout=30).status_code == 200
    assert httpx.post(f"{cluster.url}/v1/tokenize", json={"model": "fake", "text": SECRET}).status_code == 200
    lines = [line for program in cluster.programs for line in program.output.splitlines()]
    # A process that ends itself says so in Python's words, not in ours.
    records = [json.loads(line) for line in lines]
    assert not [line for line in lines if SECRET in line]
    assert {record["role"] for record in records} == {"frontend", "broker", "worker"}
    assert all({"time", "level", "message"} <= set(record) for record in records)
    (access,) = [record for record in records if record.get("request_id") == "request-1"]
    wanted = {
        "method": "POST",
        "path": "/v1/embeddings",
        "status": 200,
        "model": "fake",
        "inputs": 1,
        "trace_id": trace,
    }
    assert {name: access[name] for name in wanted} == wanted
    assert access["tokens"] == len(SECRET) <= MAX_TOKENS
    batches = [record for record in records if "request-1" in record.get("request_ids", [])]
    assert {record["role"] for record in batches} == {"broker", "worker"}
    assert {record["batch"] for record in batches} == {1}
    assert all(record["trace_ids"] == [trace] for record in batches)
    failed = [one for one in records if one["role"] == "worker" and one["level"] == "ERROR"]
    assert failed
    assert all(one["request_ids"] == ["request-2"] for one in failed)
