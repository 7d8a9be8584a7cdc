"""Middleware: API keys, quotas, request ids, CORS and logs. Real broker and frontend, fake workers."""

import json
import re
import time

import httpx
import pytest

from frontend.rest.routes.operations import READY_INTERVAL_S
from tests.harness.api_keys import make_entry, make_header
from tests.harness.clients import body
from tests.harness.connections import is_ready
from tests.harness.fake_worker import MAX_TOKENS
from tests.harness.processes import Cluster, until

KEY, OTHER, ADMIN = "vm-key", "vm-other", "vm-admin"


@pytest.fixture
def locked(cluster: Cluster) -> Cluster:
    """Return a cluster with a frontend that requires keys."""
    keys = make_entry("one", KEY, jobs_in_flight=3) + make_entry("two", OTHER, tokens_per_minute=60)
    (cluster.folder / "keys.toml").write_text(keys + make_entry("root", ADMIN, admin=True))
    cluster.broker()
    cluster.worker()
    cluster.frontend("--api-keys", str(cluster.folder / "keys.toml"), environ={"API_KEY": "of-the-environment"})
    until(lambda: is_ready(cluster), what="the cluster")
    return cluster


def embed(cluster: Cluster, *texts: str, key: str = KEY, **headers: str) -> httpx.Response:
    """Request embeddings with a key."""
    headers = make_header(key) | headers
    return httpx.post(f"{cluster.url}/v1/embeddings", json=body(*texts), headers=headers, timeout=30)


# --- API keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method_and_path", ["POST /v1/embeddings", "GET /v1/models", "GET /v1/config", "GET /metrics"])
def test_paths_require_a_key(locked: Cluster, method_and_path: str) -> None:
    method, path = method_and_path.split()
    for headers in ({}, make_header("wrong"), {"Authorization": KEY}):
        answer = httpx.request(method, locked.url + path, headers=headers, json={})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"] == {
            "message": "Unauthorized request due to invalid or missing api-key; send the header Authorization: "
            "Bearer KEY, with a key of this server",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }


def test_configured_keys_are_accepted_and_probes_need_none(locked: Cluster) -> None:
    for key in (KEY, OTHER, ADMIN, "of-the-environment"):
        assert embed(locked, "a", key=key).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert httpx.get(locked.url + path).status_code == 200


def test_reload_requires_admin_and_applies_new_keys(locked: Cluster) -> None:
    reload = f"{locked.url}/v1/config/reload"
    path = locked.folder / "keys.toml"
    assert httpx.post(reload, headers=make_header(KEY)).status_code == 403
    unchanged = httpx.post(reload, headers=make_header(ADMIN))
    assert unchanged.status_code == 200
    assert unchanged.json() == httpx.get(f"{locked.url}/v1/config", headers=make_header(KEY)).json()
    path.write_text(path.read_text() + make_entry("new", "vm-new"))
    assert httpx.post(reload, headers=make_header("of-the-environment")).status_code == 201
    assert httpx.post(reload, headers=make_header("of-the-environment")).status_code == 200
    assert embed(locked, "a", key="vm-new").status_code == 200
    path.write_text("[[key")
    broken = httpx.post(reload, headers=make_header(ADMIN))
    assert broken.status_code == 500
    message = "Reloading config file failed. Check server logs for more info."
    assert broken.json()["error"]["message"] == message
    assert embed(locked, "a", key="vm-new").status_code == 200


def test_changed_file_is_reloaded_automatically(locked: Cluster) -> None:
    path = locked.folder / "keys.toml"
    path.write_text(make_entry("late", "vm-late"))
    until(lambda: embed(locked, "a", key="vm-late").status_code == 200, what="the new key")
    until(lambda: embed(locked, "a").status_code == 401, what="the old key's end")


def test_keys_have_their_own_quotas(locked: Cluster) -> None:
    too_many = embed(locked, *"abcd")
    assert too_many.status_code == 400
    assert "its key may have 3 open at once" in too_many.json()["error"]["message"]
    # 200 bytes are about 60 tokens by the first estimate, and exactly 200.
    assert embed(locked, "x" * 50, "y" * 50, "z" * 50, "u" * 50, key=OTHER).status_code == 200
    answer = embed(locked, "x" * 50, key=OTHER)
    assert answer.status_code == 429
    assert "this key may use 60 tokens a minute" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert embed(locked, "x" * 50, key=ADMIN).status_code == 200


# --- request ids and CORS ---------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id(locked: Cluster) -> None:
    taken = embed(locked, "a", **{"x-request-id": "my-id!"})
    assert taken.headers["x-request-id"] == "my-id!"
    for given in ("", "x" * 129, "two words"):
        own = embed(locked, "a", **{"x-request-id": given}).headers["x-request-id"]
        assert len(own) == 32
    unknown = httpx.get(f"{locked.url}/nothing", headers=make_header(KEY) | {"x-request-id": "id"})
    assert (unknown.status_code, unknown.headers["x-request-id"]) == (404, "id")
    wrong_method = httpx.put(f"{locked.url}/v1/models", headers=make_header(KEY) | {"x-request-id": "id"})
    assert (wrong_method.status_code, wrong_method.headers["x-request-id"]) == (405, "id")
    assert httpx.get(f"{locked.url}/v1/models").headers["x-request-id"]


def test_other_origin_can_send_a_key(locked: Cluster) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
    }
    preflight = httpx.options(f"{locked.url}/v1/embeddings", headers=headers)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == headers["Access-Control-Request-Headers"]
    assert int(preflight.headers["access-control-max-age"]) > 0
    for key in (KEY, "wrong"):
        answer = embed(locked, "a", key=key, Origin="https://app.example")
        assert answer.status_code == (200 if key == KEY else 401)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in embed(locked, "a").headers


def test_options_without_origin_lists_methods(locked: Cluster) -> None:
    answer = httpx.options(f"{locked.url}/v1/models")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ("https://a.example, https://b.example", "https://b.example", "https://b.example"),
        ("https://a.example", "https://b.example", None),
        ("", "https://a.example", None),
    ],
)
def test_allowed_origins_can_be_listed(cluster: Cluster, allowed: str, origin: str, expected: str | None) -> None:
    cluster.broker()
    cluster.frontend("--allowed-origins", allowed)
    until(lambda: cluster.health(), what="the frontend")
    answer = httpx.get(f"{cluster.url}/v2/health/live", headers={"Origin": origin})
    assert answer.headers.get("access-control-allow-origin") == expected
    assert answer.headers.get("vary") == ("Origin" if allowed else None)
    without_origin = httpx.get(f"{cluster.url}/v2/health/live").headers
    assert "access-control-allow-origin" not in without_origin
    assert without_origin.get("vary") == answer.headers.get("vary")


# --- logs -------------------------------------------------------------------------------------------------------------


SECRET = "zebra-in-the-cellar"


def test_json_logs_have_ids_and_no_inputs(cluster: Cluster) -> None:
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
    assert {httpx.post(url, json=content, headers={"x-request-id": "request-2"}).status_code for content in bad} == {
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
    # Every line is a record, even from a worker that crashes.
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
    failed = [record for record in records if record["role"] == "worker" and record["level"] == "ERROR"]
    assert failed
    assert all(record["request_ids"] == ["request-2"] for record in failed)


def test_text_log_names_model_client_and_duration(locked: Cluster) -> None:
    frontend = locked.programs[-1]
    assert embed(locked, "a", "b", **{"x-request-id": "request-1"}).status_code == 200
    assert embed(locked, "a", key="wrong", **{"x-request-id": "request-2"}).status_code == 401
    until(lambda: "request_id=request-2" in frontend.output, what="the lines")
    shown = [line for line in frontend.output.splitlines() if "request_id=request-" in line]
    served = r"INFO frontend: POST /v1/embeddings 200 \d+\.\d ms model=fake inputs=2 client=one request_id=request-1"
    rejected = r"INFO frontend: POST /v1/embeddings 401 \d+\.\d ms request_id=request-2"
    assert len(shown) == 2
    assert re.search(f"{served}$", shown[0])
    assert re.search(f"{rejected}$", shown[1])


@pytest.mark.parametrize("level", ["info", "debug"])
def test_probes_are_logged_at_debug(cluster: Cluster, level: str) -> None:
    cluster.broker()
    frontend = cluster.frontend("--log-level", level)
    until(lambda: cluster.health(), what="the frontend")
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready", "/health", "/metrics")
    for path in paths:
        httpx.get(cluster.url + path)
    httpx.get(f"{cluster.url}/v2")
    until(lambda: "GET /v2 " in frontend.output, what="the last line")
    assert {f"GET {path} " in frontend.output for path in paths} == {level == "debug"}


@pytest.mark.parametrize(("published", "processes"), [("", 1), ("127.0.0.1:9000", 1), ("", 3)])
def test_log_announces_readiness_once(cluster: Cluster, published: str, processes: int) -> None:
    cluster.broker()
    environ = {"VECMILL_PORT": published, "API_KEY": "vm-key"}
    frontend = cluster.frontend("--processes", str(processes), environ=environ)
    until(lambda: is_ready(cluster, "/v2/health/live"), what="the frontend")
    assert " ready: " not in frontend.output
    for _ in range(2):
        cluster.worker()
    until(lambda: frontend.output.count("connected to broker") == processes, what="all frontends")
    until(lambda: " ready: " in frontend.output, what="the line")
    # Every process looks for a served model at this interval.
    time.sleep(2 * READY_INTERVAL_S)
    (line,) = [line for line in frontend.output.splitlines() if " ready: " in line]
    url = f"http://{published}" if published else cluster.url
    assert f"ready: fake at {url}; {url}/docs describes all paths; try: curl {url}/v1/embeddings " in line
    assert '-H "Authorization: Bearer $API_KEY"' in line
    assert frontend.output.count("listening on port") == processes
    assert not any(word in frontend.output for word in ("Starting worker", "Worker ready"))


@pytest.mark.parametrize(
    ("host", "environ", "warned"),
    [
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {"API_KEY": "vm-key"}, False),
        ("0.0.0.0", {"VECMILL_PORT": "127.0.0.1:8000"}, False),
        ("0.0.0.0", {"VECMILL_PORT": "8000"}, True),
    ],
)
def test_open_address_without_keys_is_warned_of(
    cluster: Cluster, host: str, environ: dict[str, str], warned: bool
) -> None:
    frontend = cluster.frontend("--host", host, "--processes", "2", environ=environ)
    until(lambda: frontend.output.count("listening on port") == 2, what="the frontends")
    assert frontend.output.count(f"no API key is required on {host}, so everybody") == warned
