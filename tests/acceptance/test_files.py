"""Files and batches over HTTP: uploads of all kinds, downloads in parts, owners, limits and full disks."""

import gzip
import io
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import openai
import pytest

from frontend.batches.store import Store, open_store
from frontend.config import StoreConfig
from tests.harness.api_keys import make_entry
from tests.harness.processes import Cluster, Program, until

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "fake", "input": "a"}}\n'
clients: list[openai.OpenAI] = []
UNKNOWN = "file-" + "0" * 32


def start(cluster: Cluster, *flags: str) -> Program:
    """Start a frontend with a store, which needs no worker."""
    cluster.broker()
    program = cluster.frontend("--data", str(cluster.folder / "data"), *flags)
    until(lambda: is_live(cluster), what="the frontend")
    return program


def is_live(cluster: Cluster) -> bool:
    try:
        return httpx.get(f"{cluster.url}/v2/health/live").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster with a store for files of at most 3 MB."""
    cluster = Cluster(tmp_path_factory.mktemp("shared"))
    start(cluster, "--max-file-bytes", "3000000")
    yield cluster
    cluster.close()


def write_keys(path: Path, *names: str) -> str:
    """Write a file of API keys, each of which is vm- and its name."""
    path.write_text("".join(make_entry(name, f"vm-{name}") for name in names))
    return str(path)


def connect(cluster: Cluster, key: str = "none") -> openai.OpenAI:
    clients.append(openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=0))
    return clients[-1]


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    """Close the connections of all clients after a test."""
    yield
    while clients:
        clients.pop().close()


def open_files(cluster: Cluster) -> Store:
    return open_store(StoreConfig(data=str(cluster.folder / "data")))


def list_stored(folder: Path) -> list[Path]:
    return [path for path in (folder / "data/files/files").rglob("*") if path.is_file()]


def build_form(content: bytes, *, file_first: bool, purpose: str = "batch") -> bytes:
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + content + b"\r\n"
    field = f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'.encode()
    return (file + field if file_first else field + file) + b"--b--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=b"}


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_first", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("prefix", ["/v1", "/v3/v1"])
def test_every_kind_of_form_is_stored(shared: Cluster, file_first: bool, chunked: bool, prefix: str) -> None:
    content = LINE * 9000
    form = build_form(content, file_first=file_first)
    body = (form[begin : begin + 50_000] for begin in range(0, len(form), 50_000)) if chunked else form
    answer = httpx.post(f"{shared.url}{prefix}/files", content=body, headers=FORM)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["bytes"], file["filename"], file["status"]) == (len(content), "a.jsonl", "processed")
    assert file["expires_at"] == file["created_at"] + 30 * 86400
    assert httpx.get(f"{shared.url}{prefix}/files/{file['id']}/content").content == content


def test_compressed_and_expected_uploads_are_stored(shared: Cluster, tmp_path: Path) -> None:
    for number, flags in enumerate((["-H", "Expect: 100-continue"], ["-H", "Content-Encoding: gzip"])):
        body = tmp_path / "body"
        body.write_bytes(build_form(LINE * 20_000, file_first=True))
        if number:
            subprocess.run(["gzip", "-n", body], check=True)
            body = tmp_path / "body.gz"
        command = ["curl", "-sS", "--data-binary", f"@{body}", "-H", f"Content-Type: {FORM['Content-Type']}", *flags]
        done = subprocess.run([*command, f"{shared.url}/v1/files"], check=True, capture_output=True)
        assert msgspec.json.decode(done.stdout)["bytes"] == len(LINE) * 20_000


def test_file_beyond_the_limit_is_refused(shared: Cluster) -> None:
    before = len(list_stored(shared.folder))
    for file_first in (False, True):
        for size in (3_000_001, 20_000_000):
            form = build_form(b"x" * size, file_first=file_first)
            for body in (form, iter([form])):
                answer = httpx.post(f"{shared.url}/v1/files", content=body, headers=FORM)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
                assert answer.json()["error"]["message"].startswith("the file is larger than 3000000 bytes; split it")
    assert httpx.post(
        f"{shared.url}/v1/files", content=build_form(b"x" * 3_000_000, file_first=True), headers=FORM
    ).is_success
    assert len(list_stored(shared.folder)) == before + 1


@pytest.mark.parametrize("file_first", [False, True])
def test_invalid_form_leaves_no_file(shared: Cluster, file_first: bool) -> None:
    before = len(list_stored(shared.folder))
    form = build_form(LINE * 9000, file_first=file_first)
    bodies = [
        (build_form(LINE * 9000, file_first=file_first, purpose="x"), "purpose is 'x'"),
        (form.replace(b"a.jsonl", b"a.txt"), "Invalid file format for Batch API. Must be .jsonl"),
        (form[:-9], "the form has no end"),
        (form.replace(b'name="file"', b'name="data"'), "the fields of the form have more than 65536 bytes"),
        (form[:-7] + form, "the form has more than one file"),
        (build_form(b"", file_first=file_first), "the file is empty"),
        (b"--b--\r\n", "file is missing; send it as a part of the form"),
    ]
    for body, message in bodies:
        answer = httpx.post(f"{shared.url}/v1/files", content=body, headers=FORM)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert answer.json()["error"]["message"].startswith(message), answer.text
    answer = httpx.post(f"{shared.url}/v1/files", json={})
    assert answer.json()["error"]["message"] == "the body is not a form; send multipart/form-data with a boundary"
    assert len(list_stored(shared.folder)) == before


def open_upload(cluster: Cluster, sent: bytes) -> socket.socket:
    """Return a connection on which the begin of an upload of 2 MB has been sent."""
    connection = socket.create_connection(("127.0.0.1", cluster.port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM['Content-Type']}\r\nContent-Length: 2000000\r\n\r\n"
    )
    connection.sendall(head.encode() + sent)
    return connection


def test_aborted_upload_leaves_no_file(shared: Cluster) -> None:
    before = len(list_stored(shared.folder))
    with open_upload(shared, build_form(LINE * 19_000, file_first=True)[:1_900_000]):
        until(lambda: len(list_stored(shared.folder)) == before + 1, what="the unfinished file")
    until(lambda: len(list_stored(shared.folder)) == before, what="the removal of the file")


def test_slow_upload_is_ended(cluster: Cluster) -> None:
    start(cluster, "--request-timeout-s", "0.3")
    with open_upload(cluster, build_form(LINE, file_first=True)[:150]) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 408 Request Timeout\r\n" in answer
    assert b"the file did not arrive in time (150 bytes so far)" in answer
    assert list_stored(cluster.folder) == []


def test_upload_needs_a_minimum_rate(cluster: Cluster) -> None:
    start(cluster, "--body-timeout-s", "0.5", "--max-body-bytes", "1000000")
    with open_upload(cluster, build_form(LINE, file_first=True)) as connection:
        connection.settimeout(10)
        answer = b""
        while not answer:
            connection.sendall(b"x")
            answered, _, _ = select.select([connection], [], [], 0.01)
            answer = connection.recv(65536) if answered else b""
    assert b" 408 Request Timeout\r\n" in answer


def test_uploads_at_a_time_are_limited(cluster: Cluster) -> None:
    start(cluster, "--max-incoming-bytes", "16777216")
    with open_upload(cluster, build_form(LINE, file_first=True)):
        until(lambda: "vecmill_open_uploads 1.0" in httpx.get(f"{cluster.url}/metrics").text, what="the upload")
        answer = httpx.post(f"{cluster.url}/v1/files", content=build_form(LINE, file_first=True), headers=FORM)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    until(lambda: "vecmill_open_uploads 0.0" in httpx.get(f"{cluster.url}/metrics").text, what="the end of the upload")
    assert httpx.post(f"{cluster.url}/v1/files", content=build_form(LINE, file_first=True), headers=FORM).is_success


def read_peak_kb(program: Program) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{program.process.pid}/status").read_text())
    assert found
    return int(found[1])


def test_large_file_needs_little_memory(cluster: Cluster) -> None:
    program = start(cluster)
    client = connect(cluster)
    before_kb = read_peak_kb(program)
    file = client.files.create(file=("a.jsonl", io.BytesIO(LINE * 1_000_000)), purpose="batch")
    form = gzip.compress(build_form(bytes(200_000_000), file_first=True), 1)
    headers = FORM | {"Content-Encoding": "gzip"}
    assert (
        httpx.post(f"{cluster.url}/v1/files", content=form, headers=headers, timeout=60).json()["bytes"] == 200_000_000
    )
    with client.files.with_streaming_response.content(file.id) as answer:
        size = sum(len(block) for block in answer.iter_bytes())
    assert size == file.bytes == len(LINE) * 1_000_000
    assert read_peak_kb(program) - before_kb < 50_000


def test_wrong_key_reads_its_error(cluster: Cluster, tmp_path: Path) -> None:
    start(cluster, "--api-keys", write_keys(tmp_path / "keys.toml", "one"))
    for size in (1000, 30_000_000):
        with pytest.raises(openai.AuthenticationError):
            connect(cluster, "vm-other").files.create(file=("a.jsonl", b"x" * size), purpose="batch")
    assert list_stored(cluster.folder) == []


def send_everything(cluster: Cluster, key: str = "none") -> bytes:
    """Return the answer to an upload of 30 MB, which is read when everything has been sent."""
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM['Content-Type']}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: 30000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
        connection.sendall(head.encode() + build_form(bytes(40_000_000), file_first=True)[:30_000_000])
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_refused_upload_reads_its_error(cluster: Cluster, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", "one")
    start(cluster, "--api-keys", keys, "--max-stored-bytes", str(len(LINE)))
    connect(cluster, "vm-one").files.create(file=("a.jsonl", LINE), purpose="batch")
    for key, status, code in (("vm-one", 413, "storage_limit_exceeded"), ("vm-other", 401, "invalid_api_key")):
        answer = send_everything(cluster, key)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert code.encode() in answer
    assert len(list_stored(cluster.folder)) == 1


# --- full disk -------------------------------------------------------------------------------------------------------


def start_on_small_disk(cluster: Cluster) -> tuple[Program, Path]:
    """Start a frontend with a store of 8 MB, in a namespace of its own. Return its folder as this process sees it."""
    data = cluster.folder / "data"
    data.mkdir()
    own = ["--map-root-user"] if os.geteuid() else []
    unshare = ["unshare", "--mount", *own]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", data], capture_output=True).returncode:
        pytest.skip("this machine allows no mount in a namespace")
    script = f'mount -t tmpfs -o size=8m tmpfs {data} && exec "$@"'
    cluster.broker()
    flags = ["--broker", cluster.endpoints["frontend"], "--port", str(cluster.port), "--data", str(data)]
    command = [*unshare, "sh", "-c", script, "sh", sys.executable, "-m", "frontend", *flags]
    program = Program("frontend", command, cluster.folder / "frontend.log")
    cluster.programs.append(program)
    until(lambda: is_live(cluster), what="the frontend")
    return program, Path(f"/proc/{program.process.pid}/root{data}")


def test_full_disk_is_answered_and_recovers(cluster: Cluster) -> None:
    program, data = start_on_small_disk(cluster)
    client = connect(cluster)
    kept = client.files.create(file=("a.jsonl", LINE * 30_000), purpose="batch")
    for _ in range(2):
        with pytest.raises(
            openai.InternalServerError, match="the server's disk for files is full; delete files"
        ) as raised:
            client.files.create(file=("b.jsonl", LINE * 60_000), purpose="batch")
        assert (raised.value.status_code, raised.value.code) == (507, "insufficient_storage")
    assert "is full: " in program.output
    assert [path.name for path in (data / "files/files").rglob("*") if path.is_file()] == [kept.id]
    assert client.files.content(kept.id).content == LINE * 30_000
    client.files.delete(kept.id)
    assert client.files.create(file=("b.jsonl", LINE * 60_000), purpose="batch").bytes == len(LINE) * 60_000


def test_full_disk_of_the_database_loses_no_file(cluster: Cluster) -> None:
    _, data = start_on_small_disk(cluster)
    client = connect(cluster)
    filler = data / "filler"
    filler.write_bytes(b"x" * 7_900_000)
    statuses = []
    for _ in range(40):
        answer = httpx.post(f"{cluster.url}/v1/files", content=build_form(LINE, file_first=True), headers=FORM)
        statuses.append(answer.status_code)
    assert 507 in set(statuses) <= {200, 503, 507}
    filler.unlink()
    client.files.create(file=("a.jsonl", LINE), purpose="batch")
    ids = {file.id for file in client.files.list()}
    stored = {path.name for path in (data / "files/files").rglob("*") if path.is_file()}
    assert ids <= stored
    # Only an upload that was answered 503 may have left an object, which a runner removes.
    assert len(stored - ids) <= statuses.count(503)
    assert all(client.files.content(one).content == LINE for one in ids)


# --- downloads -------------------------------------------------------------------------------------------------------


def test_content_is_sent_in_ranges(shared: Cluster) -> None:
    content = os.urandom(1_000_000)
    file = connect(shared).files.create(file=("ü.bin", content), purpose="user_data")
    url = f"{shared.url}/v1/files/{file.id}/content"
    whole = httpx.get(url, headers={"Accept": "application/binary"})
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%BC.bin"
    for header, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-700000", 5, 700_001),
        ("bytes=-9", 999_991, 1_000_000),
        ("bytes=400000-", 400_000, 1_000_000),
    ):
        part = httpx.get(url, headers={"Range": header})
        assert (part.status_code, part.content) == (206, content[begin:end])
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/1000000"
    beyond = httpx.get(url, headers={"Range": "bytes=1000000-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */1000000")


def test_content_has_a_tag(shared: Cluster) -> None:
    file = connect(shared).files.create(file=("a.jsonl", LINE), purpose="batch")
    url = f"{shared.url}/v1/files/{file.id}/content"
    head = httpx.head(url, headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(LINE)))
    tag = head.headers["etag"]
    same = httpx.get(url, headers={"If-None-Match": tag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).content == LINE
    for condition, status in ((tag, 206), ('"other"', 200), (head.headers["last-modified"], 206)):
        part = httpx.get(url, headers={"Range": "bytes=0-1", "If-Range": condition})
        assert part.status_code == status
    # One connection serves all of them.
    with httpx.Client() as client:
        for method in ("HEAD", "GET", "HEAD", "GET"):
            answer = client.request(method, url)
            assert answer.content == (LINE if method == "GET" else b"")


def test_interrupted_download_is_resumed(shared: Cluster, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    file = connect(shared).files.create(file=("a.bin", content), purpose="user_data")
    part = tmp_path / "part"
    part.write_bytes(content[:1_234_567])
    command = ["curl", "-sS", "-C", "-", "-o", str(part), f"{shared.url}/v1/files/{file.id}/content"]
    subprocess.run(command, check=True)
    assert part.read_bytes() == content


def test_lost_content_is_an_error(shared: Cluster) -> None:
    file = connect(shared).files.create(file=("a.bin", os.urandom(2_500_000)), purpose="user_data")
    url = f"{shared.url}/v1/files/{file.id}/content"
    (stored,) = [path for path in list_stored(shared.folder) if path.name == file.id]
    os.truncate(stored, 1_000_000)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    stored.unlink()
    answer = httpx.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert "store of files cannot be used now; its log has the reason" in answer.text


def test_slow_reader_is_ended(cluster: Cluster) -> None:
    start(cluster, "--send-timeout-s", "0.5")
    file = connect(cluster).files.create(file=("a.bin", b"x" * 60_000_000), purpose="user_data")
    with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
        connection.sendall(f"GET /v1/files/{file.id}/content HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        ended = 'vecmill_readers_ended_total{reason="stalled"} 1.0'
        until(lambda: ended in httpx.get(f"{cluster.url}/metrics").text, what="the end of the download")


# --- owners, pages and limits ----------------------------------------------------------------------------------------


def test_files_belong_to_a_key(cluster: Cluster, tmp_path: Path) -> None:
    start(
        cluster,
        "--api-keys",
        write_keys(tmp_path / "keys.toml", "one", "other"),
        "--max-stored-bytes",
        str(len(LINE) * 10),
    )
    one, other = connect(cluster, "vm-one"), connect(cluster, "vm-other")
    file = one.files.create(file=("a.jsonl", LINE * 6), purpose="batch")
    batch = one.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    calls: list[Callable[[], object]] = [
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=r"No such File object: file-|No batch found with id 'batch_"):
            call()
    assert (list(other.files.list()), list(other.batches.list())) == ([], [])
    assert [item.id for item in one.batches.list()] == [batch.id]
    for _ in range(2):
        with pytest.raises(
            openai.APIStatusError, match="the files of this key would have more than 1030 bytes"
        ) as raised:
            one.files.create(file=("a.jsonl", LINE * 6), purpose="batch")
        assert raised.value.status_code == 413
    assert other.files.create(file=("a.jsonl", LINE * 6), purpose="batch").bytes == len(LINE) * 6
    assert len(list_stored(cluster.folder)) == 2


def test_files_without_owner_are_named(cluster: Cluster, tmp_path: Path) -> None:
    first = start(cluster)
    file = connect(cluster).files.create(file=("a.jsonl", LINE), purpose="batch")
    first.close()
    second = start(cluster, "--api-keys", write_keys(tmp_path / "keys.toml", "one"))
    assert "files that were made without API keys exist, which no key finds" in second.output
    client = connect(cluster, "vm-one")
    assert list(client.files.list()) == []
    # As docs/batches.md describes.
    statement = "UPDATE files SET owner = 'key one' WHERE owner = ''"
    open_files(cluster).database._connection.transact(lambda execute: execute(statement))
    assert [one.id for one in client.files.list()] == [file.id]


def test_lists_have_pages(cluster: Cluster) -> None:
    start(cluster, "--processes", "2")
    client = connect(cluster)
    files = [client.files.create(file=("a.jsonl", LINE), purpose="batch").id for _ in range(5)]
    batches = [
        client.batches.create(input_file_id=one, endpoint="/v1/embeddings", completion_window="24h").id for one in files
    ]
    assert [file.id for file in client.files.list(limit=2)] == files[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == files
    assert [batch.id for batch in client.batches.list(limit=2)] == batches[::-1]
    assert list(client.files.list(purpose="batch_output")) == []
    # Deleting while the pages are read skips no file.
    for file in client.files.list(limit=2):
        client.files.delete(file.id)
    assert list(client.files.list()) == []


def test_expired_file_is_gone(cluster: Cluster) -> None:
    start(cluster)
    client = connect(cluster)
    expiry: openai.types.file_create_params.ExpiresAfter = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.jsonl", LINE), purpose="batch", expires_after=expiry)
    assert file.expires_at == file.created_at + 3600
    store = open_files(cluster)
    past = f"UPDATE files SET expires_at = {int(time.time())}"
    store.database._connection.transact(lambda execute: execute(past))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert list(client.files.list()) == []


def test_ended_batch_is_not_cancelled(cluster: Cluster) -> None:
    start(cluster)
    client = connect(cluster)
    file = client.files.create(file=("a.jsonl", LINE), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.cancel(batch.id).status == "cancelling"
    database = open_files(cluster).database
    claimed = database.claim_batch("test", time.time(), 30)
    assert claimed is not None
    assert database.finish_batch(msgspec.structs.replace(claimed, status="cancelled"), "test")
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(batch.id)
    assert client.batches.retrieve(batch.id).status == "cancelled"


def test_deleted_input_stays_for_its_batch(shared: Cluster) -> None:
    client = connect(shared)
    file = client.files.create(file=("a.jsonl", LINE), purpose="batch")
    client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert file.id in [path.name for path in list_stored(shared.folder)]


def test_open_batches_are_limited(cluster: Cluster) -> None:
    start(cluster, "--max-open-batches", "1", "--max-stored-bytes", "200")
    client = connect(cluster)
    file = client.files.create(file=("a.jsonl", LINE), purpose="batch")

    def create() -> str:
        return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h").id

    create()
    with pytest.raises(openai.RateLimitError, match="this key has 1 batches that have not ended; send this one"):
        create()
    client.files.create(file=("b.bin", b"x" * (200 - len(LINE))), purpose="user_data")
    with pytest.raises(openai.APIStatusError, match="the files of this key would have more than 200 bytes"):
        create()


def test_other_purpose_is_no_input(shared: Cluster) -> None:
    client = connect(shared)
    file = client.files.create(file=("a.jsonl", LINE), purpose="evals")
    with pytest.raises(openai.BadRequestError, match=f"the purpose of the file {file.id} is evals; upload it with"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def test_server_without_data_has_no_files(cluster: Cluster) -> None:
    cluster.broker()
    cluster.frontend()
    until(lambda: is_live(cluster), what="the frontend")
    assert send_everything(cluster).startswith(b"HTTP/1.1 404 ")
    client = connect(cluster)
    calls: list[Callable[[], object]] = [
        lambda: client.files.list(),
        lambda: client.files.create(file=("a.jsonl", LINE), purpose="batch"),
        lambda: client.files.content(UNKNOWN),
        lambda: client.batches.list(),
        lambda: client.batches.create(input_file_id=UNKNOWN, endpoint="/v1/embeddings", completion_window="24h"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match="because this server stores no files; start it with --data"):
            call()


def test_unusable_store_ends_the_start(cluster: Cluster) -> None:
    (cluster.folder / "file").touch()
    for flags, text in (
        (("--data", str(cluster.folder / "file")), "the folder .*/file of --data cannot be used: File exists$"),
        (
            ("--data", str(cluster.folder), "--file-store", "gs://bucket"),
            "--file-store is 'gs://bucket'; give a folder or",
        ),
        (
            ("--data", str(cluster.folder), "--database", "mysql://x"),
            "--database begins with 'mysql'; give postgresql://",
        ),
    ):
        program = cluster.frontend(*flags)
        assert program.wait() == 2
        assert re.search(f"^vecmill frontend: {text}", program.output), program.output
