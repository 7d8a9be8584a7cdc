# ruff: noqa: E501  a row is a line where it can be
"""Files and batches: what is stored, listed, refused, and answered by a server that stores no files."""

from typing import Any

from tests.acceptance.contract.row import Row, get

FILE, BATCH = "file-" + "0" * 32, "batch_" + "0" * 32
NO_FILE = f"No such File object: {FILE}"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def form(filename: str = "a.jsonl", content: bytes = b"{}\n", seconds: str = "", **fields: str) -> bytes:
    """Return a form with the file first. `seconds` is the expiry of the file."""
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds} if seconds else {}
    parts = [f'name="file"; filename="{filename}"\r\n\r\n'.encode() + content]
    parts += [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in (fields | expiry).items()]
    return b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"


def upload(name: str, status: int = 200, body: bytes = b"", *, server: str = "stored", **more: Any) -> Row:
    """Return a row of POST /v1/files."""
    return Row(f"files: {name}", "POST", "/v1/files", status, body, FORM, server, **more)


def create(name: str, status: int, **fields: Any) -> Row:
    """Return a row of POST /v1/batches; the value `...` omits a field."""
    row_fields = {field: fields.pop(field) for field in list(fields) if field in Row._fields}
    body = {"input_file_id": FILE, "endpoint": "/v1/embeddings", "completion_window": "24h", **fields}
    body = {field: value for field, value in body.items() if value is not ...}
    return Row(f"batches: {name}", "POST", "/v1/batches", status, body, server="stored", **row_fields)


EMPTY: dict[str, Any] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

ROWS = [
    upload("an input of a batch", body=form(purpose="batch"), json={
        "object": "file", "bytes": 3, "filename": "a.jsonl", "purpose": "batch", "status": "processed"}),
    upload("another purpose", body=form("a.pdf", purpose="user_data"), json={"expires_at": None}),
    upload("a BOM and CRLF", body=form(content=b"\xef\xbb\xbf{}\r\n", purpose="batch"), json={"bytes": 7}),
    upload("lines that are not JSON", body=form(content=b"hello\0\n", purpose="batch"), json={"bytes": 7}),
    upload("an expiry", body=form(seconds="3600", purpose="batch")),
    upload("a wrong expiry", 400, form(seconds="60", purpose="batch"), param="expires_after"),
    upload("no purpose", 400, form(), message="purpose is missing", param="purpose", code="invalid_value"),
    upload("an unknown purpose", 400, form(purpose="x"), message="purpose is 'x'", param="purpose"),
    upload("not .jsonl", 400, form("a.txt", purpose="batch"), message="Invalid file format for Batch API. Must be .jsonl", param="file"),
    upload("an empty file", 400, form(content=b"", purpose="batch"), message="the file is empty", code="empty_file"),
    upload("no file", 400, b"--b--\r\n", message="file is missing", param="file"),
    upload("no form", 400, b"hello", message="the form", code="invalid_form"),
    Row("files: JSON", "POST", "/v1/files", 400, {}, server="stored", message="send multipart/form-data", code="invalid_form"),
    Row("files: an unknown coding", "POST", "/v1/files", 415, form(), {**FORM, "Content-Encoding": "br"}, "stored"),
    get("/v1/files?purpose=vision", server="stored", json=EMPTY),
    get("/v1/files", server="stored", json={"object": "list"}),
    get("/v3/files?limit=10000&order=asc", server="stored", json={"object": "list", "has_more": False}),
    *(get(f"/v1/files?{name}={value}", 400, server="stored", param=name, message=f"{name} is ") for name, value in
      (("limit", "0"), ("limit", "10001"), ("limit", "x"), ("order", "up"), ("after", "x"), ("purpose", "x"))),
    get(f"/v1/files?after={FILE}", server="stored", json=EMPTY),
    get(f"/v1/files/{FILE}", 404, server="stored", message=NO_FILE, param="id"),
    get(f"/v1/files/{FILE}/content", 404, server="stored", message=NO_FILE),
    *(get(f"/v1/files/{name}", 404, server="stored", message="No such File object: ") for name in ("x", "%00", "file-%2e%2e%2f", "ü")),
    Row("files: delete an unknown file", "DELETE", f"/v1/files/{FILE}", 404, headers={"Content-Type": "application/json"}, server="stored", message=NO_FILE),
    Row("files: a wrong method", "PUT", "/v1/files", 405, server="stored", sends={"allow": ...}),
    Row("files: methods of a file", "OPTIONS", f"/v1/files/{FILE}", 204, server="stored", sends={"allow": "DELETE, GET, HEAD, OPTIONS"}),
    create("an unknown file", 404, message=NO_FILE, param="input_file_id"),
    create("an id of another kind", 404, input_file_id="x", message="No such File object: x"),
    create("no file", 400, input_file_id=..., message="Missing required parameter: 'input_file_id'.", code="missing_required_parameter"),
    create("a file that is a number", 400, input_file_id=1, param="input_file_id"),
    create("another endpoint", 400, endpoint="/v1/chat/completions", message="Supported values are: '/v1/embeddings'.", param="endpoint"),
    create("a wrong window", 400, completion_window="24 hours", message="Send '24h'", param="completion_window"),
    create("metadata of numbers", 400, metadata={"a": 1}, param="metadata"),
    create("a wrong expiry of the output", 400, output_expires_after={"anchor": "created_at", "seconds": 1}, param="output_expires_after"),
    Row("batches: not JSON", "POST", "/v1/batches", 400, b"hello", server="stored", message="The file is not valid json"),
    get("/v1/batches", server="stored", json=EMPTY),
    get("/v3/v1/batches?limit=100", server="stored", json=EMPTY),
    get("/v1/batches?limit=101", 400, server="stored", message="must be an integer from 1 to 100", param="limit"),
    get(f"/v1/batches/{BATCH}", 404, server="stored", message=f"No batch found with id '{BATCH}'.", code="batch_not_found"),
    Row("batches: cancel an unknown batch", "POST", f"/v1/batches/{BATCH}/cancel", 404, headers={"Content-Type": "application/json"},
        server="stored", code="batch_not_found"),
    # LiteLLM keeps files itself if a server answers 404.
    *(get(path, 404, server="fake", name="without --data", code="unknown_url", message="this server stores no files; start it with --data")
      for path in ("/v1/files", f"/v1/files/{FILE}", f"/v1/files/{FILE}/content", "/v1/batches", f"/v1/batches/{BATCH}")),
    upload("without --data", 404, form(purpose="batch"), server="fake", message="this server stores no files", code="unknown_url"),
    Row("batches: without --data", "POST", "/v1/batches", 404, {}, server="fake", message="this server stores no files"),
    upload("without a key", 401, form(purpose="batch"), server="locked", code="invalid_api_key"),
    get("/v1/batches", 401, server="locked", name="without a key", code="invalid_api_key"),
]  # fmt: skip
