"""The options of OVMS's benchmark client, demos/benchmark/v3/benchmark.py: its published runs against any server.

As that client does: at most 100 requests at a time, a new connection for each request, base64 answers, and latency to
the last byte of the answer. `--request_rate` sends at random times with this mean rate; `inf` sends without pause.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import statistics
import sys
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench_client import Client
from bench_texts import build_request, read_collection

from broker.shared.exit import exit_refused
from broker.shared.flags import FlagParser, parse_count

#: Requests at a time, as in OVMS's client.
MAX_OPEN = 100
#: Words of synthetic texts, each of which is one token for the usual tokenizers.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
BACKENDS = ("ovms-embeddings", "infinity-embeddings", "tei-embed", "vecmill")


@dataclass(slots=True)
class Outcome:
    """What the client saw."""

    documents: int = 0
    tokens: int = 0
    failed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return OVMS's options."""
    parser = FlagParser(prog="scripts/bench", description="Measure a running server as OVMS does.")
    parser.add_argument("--api_url", required=True, help="URL of the embeddings path, such as …:8000/v3/embeddings")
    parser.add_argument("--model", required=True, help="name of the model in the requests")
    parser.add_argument("--dataset", default="synthetic", help="synthetic, or a file of JSON lines with a field text")
    text = "tokens of a synthetic text (default: 510)"
    parser.add_argument("--synthetic_length", type=parse_count, default=510, help=text)
    parser.add_argument("--request_rate", type=float, default=math.inf, help="requests per second (default: inf)")
    parser.add_argument("--batch_size", type=parse_count, default=16, help="texts in a request (default: 16)")
    parser.add_argument("--limit", type=parse_count, default=1000, help="texts in all (default: 1000)")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="ignored: all get the same requests")
    parser.add_argument("--tokenizer", help="ignored: the server counts the tokens")
    parser.add_argument("--split", help="ignored: a file has no splits")
    parser.add_argument("--hf-subset", help="ignored: a file has no subsets")
    options = parser.parse_args(arguments)
    if options.dataset != "synthetic" and not Path(options.dataset).is_file():
        parser.error(
            f"--dataset: there is no file {options.dataset}; data sets of a model hub are not fetched, so save the "
            "texts as JSON lines with a field text"
        )
    return options


def make_documents(options: argparse.Namespace) -> list[str]:
    """Return the texts; synthetic ones differ in their order of words, because a cache would answer equal ones."""
    if options.dataset != "synthetic":
        return read_collection(Path(options.dataset))[: options.limit]
    order = random.Random(1)
    return [" ".join(order.choices(WORDS, k=options.synthetic_length)) for _ in range(options.limit)]


def list_starts(number: int, rate: float, seed: int = 1) -> list[float]:
    """Return when each request starts, in seconds: with exponential gaps, or all at once if the rate is infinite."""
    order = random.Random(seed)
    gaps = [0.0 if math.isinf(rate) else order.expovariate(rate) for _ in range(number)]
    return list(itertools.accumulate(gaps))


async def send_all(url: str, requests: Sequence[tuple[float, int, bytes]]) -> Outcome:
    """Send requests, each at its time with its number of texts."""
    address = urllib.parse.urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    outcome, open_requests, started = Outcome(), asyncio.Semaphore(MAX_OPEN), time.monotonic()

    async def send_one(start: float, texts: int, request: bytes) -> None:
        await asyncio.sleep(start - (time.monotonic() - started))
        async with open_requests:
            begun = time.monotonic()
            try:
                client = await Client(port, host).open()
                status, _ = await client.send_request(request)
                client.close()
            except (OSError, EOFError):
                status = 0
        if status != 200:
            outcome.failed += 1
            return
        outcome.latencies_s.append(time.monotonic() - begun)
        outcome.documents += texts
        outcome.tokens += json.loads(client.body)["usage"]["prompt_tokens"]

    await asyncio.gather(*(send_one(*each) for each in requests))
    outcome.duration_s = time.monotonic() - started
    return outcome


def format_outcome(outcome: Outcome, requests: int) -> str:
    """Return what OVMS's client prints, and p99."""
    times = sorted(outcome.latencies_s) or [math.nan]
    answered = requests - outcome.failed
    return "\n".join(
        (
            f"Number of documents: {outcome.documents}",
            f"Total tokens: {outcome.tokens}",
            f"Success rate: {100 * answered / requests:.1f} %. ({answered}/{requests})",
            f"Throughput - Tokens per second: {outcome.tokens / outcome.duration_s:.1f}",
            f"Throughput - Documents per second: {outcome.documents / outcome.duration_s:.1f}",
            f"Mean latency: {statistics.mean(times) * 1000:.2f} ms",
            f"Median latency: {statistics.median(times) * 1000:.2f} ms",
            f"p99 latency: {times[math.ceil(0.99 * len(times)) - 1] * 1000:.2f} ms",
            f"Average document length: {outcome.tokens / max(1, outcome.documents):.1f} tokens",
        )
    )


def main() -> None:
    """Measure a running server, and exit with status 1 if a request failed."""
    options = parse_arguments(sys.argv[1:])
    address = urllib.parse.urlsplit(options.api_url)
    if address.scheme != "http" or not address.hostname:
        exit_refused("", f"--api_url {options.api_url} is not an http:// URL")
    documents = make_documents(options)
    groups = [documents[at : at + options.batch_size] for at in range(0, len(documents), options.batch_size)]
    fields = {"model": options.model, "encoding_format": "base64"}
    starts = list_starts(len(groups), options.request_rate)
    requests = [
        (start, len(texts), build_request(texts, address.path or "/", fields))
        for start, texts in zip(starts, groups, strict=True)
    ]
    outcome = asyncio.run(send_all(options.api_url, requests))
    print(format_outcome(outcome, len(requests)))
    if outcome.failed:
        sys.exit(1)
