"""The clients of `scripts/chaos`: each asks, one request after the other, and judges every end."""

import asyncio
import base64
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from typing import Any, NamedTuple

from chaos_system import DEADLINE_S, SLACK_S, System

from tests.harness.fake_worker import vector

#: What some of the chaotic requests ask for instead; a frozen worker alone can make one of these a 504.
SHORT_S = 1.0, 5.0
#: How long after the broker or the workers are back a 503 or 504 is still their absence's, in seconds: the frontends'
#: grace for a broker's models.
AFTERMATH_S = 6.0


class Answer(NamedTuple):
    """An HTTP answer; names of headers are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One HTTP connection, whose own port is known."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.port = int(writer.get_extra_info("sockname")[1])
        self.open = True
        self.opened_at = time.monotonic()
        self.sent = self.answered = 0

    @classmethod
    async def to(cls, system: System) -> "Connection":
        """A new one."""
        connection = cls(*await asyncio.open_connection("127.0.0.1", system.port))
        # Whoever had this port before is not to be mistaken for this one.
        system.cut.discard(connection.port)
        return connection

    def send(self, method: str, path: str, body: bytes = b"", **headers: object) -> None:
        """Send a request; `headers` are Vecmill's own, and empty ones are left out."""
        head = f"{method} {path} HTTP/1.1\r\nHost: chaos\r\n"
        head += f"Content-Length: {len(body)}\r\n" if body else ""
        for name, value in headers.items():
            head += f"x-vecmill-{name.replace('_', '-')}: {value}\r\n" if value else ""
        self._writer.write(head.encode() + b"\r\n" + body)
        self.sent += 1

    async def receive(self) -> Answer:
        """The answer to it."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        self.answered += 1
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split()[1]), headers, body)

    def __str__(self) -> str:
        age_s = time.monotonic() - self.opened_at
        return f"port {self.port}, {self.answered} of {self.sent} answered, {age_s:.1f} s after it was opened"

    def close(self) -> None:
        """End it at once."""
        self.open = False
        self._writer.transport.abort()


class Texts:
    """Texts that are never the same twice. Some make a worker wait, so that kills meet batches that run."""

    def __init__(self, dice: random.Random) -> None:
        self._dice, self._number = dice, itertools.count(1)

    def request(self, slow: float) -> list[str]:
        """The texts of one request; often few. `slow` is the chance that one of them is slow."""
        size = 1 + int(64 * self._dice.random() ** 3)
        texts = [f"text {next(self._number)} {'x' * self._dice.randrange(30)}" for _ in range(size)]
        if self._dice.random() < slow:
            texts[-1] = f"slow 0.0{self._dice.randrange(1, 6)}{next(self._number):09}"
        return texts


class Client:
    """Asks, one request after the other, and checks what comes."""

    def __init__(self, system: System, texts: Texts, dice: random.Random, ends: Counter[str]) -> None:
        self._system, self._texts, self._dice, self._ends = system, texts, dice, ends
        self._connection: Connection | None = None

    async def ask(self, *, slow: float = 0, aborts: float = 0, short: float = 0) -> None:
        """One request; the chances that a text is slow, that it is given up, that its deadline is short."""
        own_s = self._dice.uniform(*SHORT_S) if self._dice.random() < short else 0.0
        limit_s = (own_s or DEADLINE_S) + SLACK_S
        lane = self._dice.choice(["", "interactive", "bulk"])
        texts = self._texts.request(slow)
        body = json.dumps({"model": "fake", "input": texts, "encoding_format": "base64"}).encode()
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connected()
                connection.send("POST", "/v1/embeddings", body, lane=lane, deadline_ms=int(own_s * 1000))
                if self._dice.random() < aborts:
                    await asyncio.sleep(self._dice.uniform(0, 0.1))
                    connection.close()
                    self._ends["aborted by its client"] += 1
                    return
                answer = await connection.receive()
        except TimeoutError:
            self._fail(f"a request of {len(texts)} texts has no answer after {limit_s:.0f} s")
        except (OSError, asyncio.IncompleteReadError) as error:
            self._note_cut(error, time.monotonic() - started)
        else:
            self._system.tally.longest_s = max(self._system.tally.longest_s, time.monotonic() - started)
            await self._judge(answer, texts, started, own_s)

    def close(self) -> None:
        """End its connection."""
        if self._connection:
            self._connection.close()

    async def _connected(self) -> Connection:
        """Its connection; now and then a new one, so that every frontend process gets its part."""
        if self._connection and self._dice.random() < 0.1:
            self._connection.close()
        if self._connection is None or not self._connection.open:
            self._connection = None
            self._connection = await Connection.to(self._system)
        return self._connection

    def _note_cut(self, error: Exception, after_s: float) -> None:
        port = self._connection.port if self._connection else 0
        if port in self._system.cut:
            self._ends["lost with its frontend process"] += 1
            self.close()
        else:
            self._fail(f"a connection ended {after_s:.3f} s into a request: {error!r}; {self._connection}")

    def _fail(self, text: str) -> None:
        self._ends["FAULT"] += 1
        self._system.tally.fault(text)
        self.close()

    async def _judge(self, answer: Answer, texts: list[str], started: float, own_s: float) -> None:
        if answer.status == 200:
            if right(answer.body, texts):
                self._ends["200"] += 1
                self._system.tally.jobs += len(texts)
            else:
                self._fail(f"wrong vectors for {texts}: {answer.body[:300]!r}")
            return
        code = error_code(answer.body)
        known = f"{answer.status} {code}"
        self._system.note_trouble()
        late = own_s and answer.status == 504
        excused = (self._system.touched_at if late else self._system.troubled_at) >= started - AFTERMATH_S
        if known == "422 poison_input":
            self._ends[known] += 1
        elif answer.status not in (503, 504):
            self._fail(f"{known}: {answer.body[:300]!r}")
        elif not answer.headers.get("retry-after", "").isdigit():
            self._fail(f"{known} without Retry-After, {time.monotonic() - started:.1f} s after it was sent")
        elif not excused:
            self._fail(f"{known} though broker and workers were there: {answer.body[:300]!r}")
        else:
            self._ends[known + (", short deadline" if late else "")] += 1
            await asyncio.sleep(self._dice.uniform(0, 0.5))


def right(body: bytes, texts: list[str]) -> bool:
    """Whether an answer has each text's own vector, in order, and nothing else."""
    rows = json.loads(body)["data"]
    wanted = [(index, base64.b64encode(vector(text).tobytes()).decode()) for index, text in enumerate(texts)]
    return [(row["index"], row["embedding"]) for row in rows] == wanted


def error_code(body: bytes) -> str:
    """The code of OpenAI's error object."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return "no error object"


async def health(system: System) -> dict[str, Any]:
    """GET /health on a new connection; empty when its frontend process is killed meanwhile."""
    connection = await Connection.to(system)
    try:
        async with asyncio.timeout(SLACK_S):
            connection.send("GET", "/health")
            state: dict[str, Any] = json.loads((await connection.receive()).body)
            return state
    except TimeoutError:
        system.tally.fault(f"GET /health has no answer after {SLACK_S:.0f} s")
    except (OSError, asyncio.IncompleteReadError) as error:
        if connection.port not in system.cut:
            system.tally.fault(f"GET /health failed: {error!r}")
    finally:
        connection.close()
    return {}


async def watch(system: System) -> None:
    """Remember each broker's counters."""
    while True:
        pid = system.broker.pid
        with contextlib.suppress(ConnectionRefusedError):
            state = await health(system)
            # A counter never goes down; while a broker goes and another comes, nobody can tell whose these are.
            if pid and system.broker.pid == pid and system.broker.age_s > 2 and state.get("counters"):
                system.tally.lives[pid] = state["counters"]
        await asyncio.sleep(0.5)
