"""Clients of `scripts/chaos`, which send one request after the other and judge how each of them ends."""

import asyncio
import base64
import contextlib
import itertools
import json
import math
import random
import time
from collections import Counter
from typing import Any, NamedTuple

from chaos_system import DEADLINE_S, SLACK_S, System

from tests.harness.fake_worker import vector

#: Range of short deadlines. One frozen worker can make a request with such a deadline a 504.
SHORT_S = 1.0, 5.0
#: Seconds for which a 503 or 504 is excused after the broker or the workers are back: the frontends' grace.
AFTERMATH_S = 6.0


class Answer(NamedTuple):
    """HTTP answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """HTTP connection that knows its local port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened_at: float) -> None:
        self._reader, self._writer = reader, writer
        self.port = int(writer.get_extra_info("sockname")[1])
        self.open = True
        #: When the connection was requested, so before a process can have accepted it.
        self.opened_at = opened_at
        self.sent = self.answered = 0

    @classmethod
    async def open_to(cls, system: System) -> "Connection":
        """Return a new connection to the system's frontend."""
        opened_at = time.monotonic()
        return cls(*await asyncio.open_connection("127.0.0.1", system.port), opened_at)

    def is_lost(self, system: System) -> bool:
        """Return whether the connection ended with a killed frontend process, not an earlier one from its port."""
        return system.lost_ports.get(self.port, -math.inf) >= self.opened_at

    def send(self, method: str, path: str, body: bytes = b"", **headers: object) -> None:
        """Send a request; `headers` get the prefix `x-vecmill-`, and empty headers are omitted."""
        head = f"{method} {path} HTTP/1.1\r\nHost: chaos\r\n"
        head += f"Content-Length: {len(body)}\r\n" if body else ""
        for name, value in headers.items():
            head += f"x-vecmill-{name.replace('_', '-')}: {value}\r\n" if value else ""
        self._writer.write(head.encode() + b"\r\n" + body)
        self.sent += 1

    async def receive(self) -> Answer:
        """Return the answer to the last request."""
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
        return f"port {self.port}, {self.answered} of {self.sent} answered, open for {age_s:.1f} s"

    def close(self) -> None:
        """Abort the connection."""
        self.open = False
        self._writer.transport.abort()


class Texts:
    """Source of unique texts. Some texts make a fake worker sleep, so that strikes hit running batches."""

    def __init__(self, dice: random.Random) -> None:
        self._dice, self._number = dice, itertools.count(1)

    def make_texts(self, slow: float) -> list[str]:
        """Return 1 to 64 texts, mostly few; `slow` is the probability of a slow text."""
        size = 1 + int(64 * self._dice.random() ** 3)
        texts = [f"text {next(self._number)} {'x' * self._dice.randrange(30)}" for _ in range(size)]
        if self._dice.random() < slow:
            texts[-1] = f"slow 0.0{self._dice.randrange(1, 6)}{next(self._number):09}"
        return texts


class Client:
    """Client that sends one request after the other and checks each answer."""

    def __init__(self, system: System, texts: Texts, dice: random.Random, ends: Counter[str]) -> None:
        self._system, self._texts, self._dice, self._ends = system, texts, dice, ends
        self._connection: Connection | None = None

    async def send_request(self, *, slow: float = 0, aborts: float = 0, short: float = 0) -> None:
        """Send a request; the probabilities are those of a slow text, of an abort, and of a short deadline."""
        deadline_s = self._dice.uniform(*SHORT_S) if self._dice.random() < short else 0.0
        limit_s = (deadline_s or DEADLINE_S) + SLACK_S
        lane = self._dice.choice(["", "interactive", "bulk"])
        texts = self._texts.make_texts(slow)
        body = json.dumps({"model": "fake", "input": texts, "encoding_format": "base64"}).encode()
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._get_connection()
                connection.send("POST", "/v1/embeddings", body, lane=lane, deadline_ms=int(deadline_s * 1000))
                if self._dice.random() < aborts:
                    await asyncio.sleep(self._dice.uniform(0, 0.1))
                    connection.close()
                    self._ends["aborted by the client"] += 1
                    return
                answer = await connection.receive()
        except TimeoutError:
            self._add_fault(f"a request of {len(texts)} texts has no answer after {limit_s:.0f} s")
        except (OSError, asyncio.IncompleteReadError) as error:
            self._judge_loss(error, time.monotonic() - started)
        else:
            self._system.tally.longest_s = max(self._system.tally.longest_s, time.monotonic() - started)
            await self._judge_answer(answer, texts, started, deadline_s)

    def close(self) -> None:
        """Abort the connection."""
        if self._connection:
            self._connection.close()

    async def _get_connection(self) -> Connection:
        """Return the connection, sometimes a new one, so that every frontend process gets requests."""
        if self._connection and self._dice.random() < 0.1:
            self._connection.close()
        if self._connection is None or not self._connection.open:
            self._connection = None
            self._connection = await Connection.open_to(self._system)
        return self._connection

    def _judge_loss(self, error: Exception, after_s: float) -> None:
        if self._connection and self._connection.is_lost(self._system):
            self._ends["lost with the frontend process"] += 1
            self.close()
        else:
            self._add_fault(f"a connection ended {after_s:.3f} s into a request: {error!r}; {self._connection}")

    def _add_fault(self, text: str) -> None:
        self._ends["FAULT"] += 1
        self._system.tally.add_fault(text)
        self.close()

    async def _judge_answer(self, answer: Answer, texts: list[str], started: float, deadline_s: float) -> None:
        if answer.status == 200:
            if has_right_vectors(answer.body, texts):
                self._ends["200"] += 1
                self._system.tally.jobs += len(texts)
            else:
                self._add_fault(f"wrong vectors for {texts}: {answer.body[:300]!r}")
            return
        code = find_error_code(answer.body)
        known = f"{answer.status} {code}"
        self._system.note_absence()
        late = deadline_s and answer.status == 504
        excused = (self._system.partly_absent_at if late else self._system.absent_at) >= started - AFTERMATH_S
        if known == "422 poison_input":
            self._ends[known] += 1
        elif answer.status not in (503, 504):
            self._add_fault(f"{known}: {answer.body[:300]!r}")
        elif not answer.headers.get("retry-after", "").isdigit():
            self._add_fault(f"{known} without Retry-After, {time.monotonic() - started:.1f} s after it was sent")
        elif not excused:
            self._add_fault(f"{known} although the broker and the workers were available: {answer.body[:300]!r}")
        else:
            self._ends[known + (", short deadline" if late else "")] += 1
            await asyncio.sleep(self._dice.uniform(0, 0.5))


def has_right_vectors(body: bytes, texts: list[str]) -> bool:
    """Return whether an answer has exactly the vectors of its texts, in order."""
    rows = json.loads(body)["data"]
    expected = [(index, base64.b64encode(vector(text).tobytes()).decode()) for index, text in enumerate(texts)]
    return [(row["index"], row["embedding"]) for row in rows] == expected


def find_error_code(body: bytes) -> str:
    """Return the code of an error object, or a note that there is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return "no error object"


async def get_health(system: System) -> dict[str, Any]:
    """Return GET /health on a new connection; empty if the frontend process is killed meanwhile."""
    connection = await Connection.open_to(system)
    try:
        async with asyncio.timeout(SLACK_S):
            connection.send("GET", "/health")
            state: dict[str, Any] = json.loads((await connection.receive()).body)
            return state
    except TimeoutError:
        system.tally.add_fault(f"GET /health has no answer after {SLACK_S:.0f} s")
    except (OSError, asyncio.IncompleteReadError) as error:
        if not connection.is_lost(system):
            system.tally.add_fault(f"GET /health failed: {error!r}")
    finally:
        connection.close()
    return {}


async def record_counters(system: System) -> None:
    """Record the counters of each incarnation of the broker until cancelled."""
    while True:
        pid = system.broker.pid
        with contextlib.suppress(ConnectionRefusedError):
            state = await get_health(system)
            # Shortly after a restart the answer may still have the counters of the last incarnation.
            if pid and system.broker.pid == pid and system.broker.age_s > 2 and state.get("counters"):
                system.tally.incarnations[pid] = state["counters"]
        await asyncio.sleep(0.5)
