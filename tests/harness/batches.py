"""A store with batches, and a broker without sockets, for tests of the runner."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from frontend.api.errors import ApiError, from_failure, unknown_model
from frontend.api.schemas import RequestOptions
from frontend.batches.batch_run import BatchRun
from frontend.batches.rows import Batch, File, FilePart, make_id
from frontend.batches.store import Store, open_store
from frontend.config import Config, StoreConfig
from frontend.session.pending import Pending
from tests.harness import fake_worker

ENDPOINT = "/v1/embeddings"


def line(custom_id: str, text: object = "text", **body: object) -> str:
    """Return a line of an input file."""
    fields = {"model": "fake", "input": text, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": fields})


class FakeBroker:
    """Stands for `BrokerClient`: answers with the vectors of the fake worker."""

    def __init__(self) -> None:
        self.models = {"fake": fake_worker.model()}
        #: Called with the texts of each request; may raise `ApiError`.
        self.before: Callable[[Sequence[bytes]], None] = lambda _: None
        #: Codes with which single inputs fail, each once.
        self.failures: dict[bytes, ErrorCode] = {}
        #: Set while requests are answered.
        self.open = asyncio.Event()
        self.open.set()
        #: Texts and options of the requests, and how many ran at once at most.
        self.texts: list[bytes] = []
        self.options: list[RequestOptions] = []
        self.running = self.most = 0

    async def find_model(self, name: str) -> wire.ModelInfo:
        """Return a model, or raise `ApiError` 404."""
        found = self.models.get(name.partition(":")[0])
        if found is None:
            raise unknown_model(name, served=self.models)
        return found

    async def run(
        self,
        model: str,
        kind: wire.Kind,
        inputs: Sequence[bytes],
        request_options: RequestOptions,
        deadline: float,
        *,
        options: int = 0,
        per_item: bool = False,
        max_tokens: float = 0,
    ) -> Pending:
        """Return the answered request."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
            await asyncio.sleep(0)
            self.texts += inputs
            self.options.append(request_options)
            self.before(inputs)
        finally:
            self.running -= 1
        info = self.models[model]
        submission = wire.Submission(
            1, model, wire.Lane.BULK, "", 0, kind, wire.pack_u32(map(len, inputs)), options, revision=info.revision
        )
        pending = Pending(submission, b"", deadline, per_item=per_item, model_info=info)
        for position, text in enumerate(inputs):
            if code := self.failures.pop(text, None):
                pending.add_failure(wire.Failure(1, position, code, "failed"))
                continue
            row = fake_worker.vector(text.decode(), revision=info.revision)
            pending.add_row(position, memoryview(row.tobytes()), len(text), 0)
        pending.revision = info.revision
        return pending


def refuse(code: ErrorCode = ErrorCode.OVERLOADED, retry_after_s: float = 0.01) -> ApiError:
    """Return a temporary error."""
    return from_failure(code, "later", int(retry_after_s * 1000))


class Bench:
    """A store in a folder, a broker, and the batches in them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        store = {name: value for name, value in settings.items() if name in StoreConfig.__struct_fields__}
        self.store: Store = open_store(StoreConfig(data=str(folder / "data"), **store))
        self.config = Config(data=str(folder / "data"), **settings)
        self.broker = FakeBroker()

    async def add(self, content: bytes | str | Sequence[str], owner: str = "", **fields: Any) -> Batch:
        """Add an input file and a batch of it."""
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else "\n".join(content)).encode()
        now, file_id = int(time.time()), make_id("file-", time.time_ns(), secrets.token_bytes(8))
        await self.store.contents.put(f"files/{file_id}", content)
        file = File(id=file_id, owner=owner, bytes=len(content), created_at=now, filename="a.jsonl", purpose="batch")
        assert self.store.database.add_file(file, [FilePart(file_id, 0, f"files/{file_id}", len(content))])
        known: dict[str, Any] = {
            "id": make_id("batch_", time.time_ns(), secrets.token_bytes(8)),
            "owner": owner,
            "endpoint": ENDPOINT,
            "input_file_id": file_id,
            "completion_window": "24h",
            "created_at": now,
            "expires_at": now + 86400,
        }
        batch = Batch(**(known | fields))
        assert self.store.database.add_batch(batch)
        return batch

    def claim(self, holder: str = "one") -> BatchRun:
        """Claim a batch, and return what runs it."""
        batch = self.store.database.claim_batch(holder, time.time(), 10.0)
        assert batch
        return BatchRun(self.store, self.broker, self.config, batch, holder)  # type: ignore[arg-type]

    def find(self, batch: Batch) -> Batch:
        """Return the current row."""
        found = self.store.database.find_batch(batch.id, batch.owner)
        assert found
        return found

    async def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of a file; none if there is no file."""
        parts = self.store.database.list_parts(file_id) if file_id else []
        content = b"".join([block async for block in self.store.contents.read_range(parts)])
        assert not content or content.endswith(b"\n")
        return [msgspec.json.decode(text) for text in content.splitlines()]
