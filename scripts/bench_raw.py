"""Rows of `scripts/bench` without a server: OpenVINO in one process that has the texts.

This is the best that batching can do with a graph and as many texts as clients have open at once: the texts of such a
window are sorted by length and cut into micro-batches of the size that is fastest for them, and each core runs one
inference at a time, without a pause between windows.
"""

import itertools
import queue
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from workers.engine.backend import Ids
from workers.engine.cpus import count_cpus
from workers.engine.feeds import pack_ids, pad_ids
from workers.engine.tokenizer import Tokenizer
from workers.models.prepare import PreparedModel, build_states

#: Sizes of micro-batches to choose from, in tokens.
BUDGETS = (256, 512, 1024)
#: Characters of the texts in a trial of a size: half a second of all-MiniLM-L6-v2 on 2 cores.
TRIAL_CHARACTERS = 16_000
#: Properties of OpenVINO, besides the number of streams.
PROPERTIES = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True, slots=True)
class RawRun:
    """Result of a measurement."""

    texts: int
    texts_s: float
    #: Seconds of each text; only of texts that ran one after another.
    latencies: list[float]
    #: Padding tokens per token.
    padding: float
    #: Mean texts in an inference.
    micro_batch: float
    cpu_s: float


class Raw:
    """A model compiled by OpenVINO."""

    def __init__(self, prepared: PreparedModel, model: "ov.Model | Path", weights: object = None) -> None:
        """Compile a model; `weights` is what owns the memory of its constants."""
        self._weights = weights
        self._pad = prepared.pad_id
        self._tokenizer = Tokenizer(prepared.tokenizer_path, lower_case=prepared.lower_case)
        streams = count_cpus()
        compiled = ov.Core().compile_model(model, "CPU", {**PROPERTIES, "NUM_STREAMS": streams})
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        names = [port.get_any_name() for port in compiled.inputs]
        self.pads = "places" not in names
        self._prompts = [name for name in names if "prompt" in name]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""
        return [len(ids) for ids in self._tokenizer.encode_texts(texts)] if texts else []

    def find_budget(self, texts: Sequence[str], window: int) -> tuple[int, float]:
        """Return the fastest size of micro-batches for such texts, in tokens, and the texts per second."""
        ends = itertools.accumulate(map(len, texts))
        trial = [text for text, end in zip(texts, ends, strict=True) if end <= TRIAL_CHARACTERS] or texts[:1]
        self.run_batched(trial, BUDGETS[1], window)
        rates = {budget: max(self.run_batched(trial, budget, window).texts_s for _ in range(2)) for budget in BUDGETS}
        budget = max(rates, key=rates.__getitem__)
        return budget, rates[budget]

    def run_batched(self, texts: Sequence[str], budget: int, window: int) -> RawRun:
        """Tokenize all texts, then infer each `window` of them in micro-batches of similar length."""
        started, used = time.monotonic(), read_own_cpu_seconds()
        ids = self._tokenizer.encode_texts(texts)
        lengths = [len(each) for each in ids]
        cut = [
            [first + row for row in rows]
            for first in range(0, len(ids), window)
            for rows in cut_micro_batches(lengths[first : first + window], budget, pads=self.pads)
        ]
        self._run_all([[ids[row] for row in rows] for rows in cut])
        seconds = time.monotonic() - started
        tokens = sum(map(len, ids))
        computed = sum(max(len(ids[row]) for row in rows) * len(rows) for rows in cut) if self.pads else tokens
        cpu_s = read_own_cpu_seconds() - used
        return RawRun(len(texts), len(texts) / seconds, [], computed / tokens - 1, len(texts) / len(cut), cpu_s)

    def run_parallel(self, texts: Sequence[str]) -> RawRun:
        """Infer each text alone, on all cores, like a server that does not batch across requests."""
        started, used = time.monotonic(), read_own_cpu_seconds()
        self._run_all([[ids] for ids in self._tokenizer.encode_texts(texts)])
        seconds = time.monotonic() - started
        return RawRun(len(texts), len(texts) / seconds, [], 0.0, 1.0, read_own_cpu_seconds() - used)

    def run_in_turn(self, requests: Sequence[Sequence[str]], at_most_s: float) -> RawRun:
        """Tokenize and infer one request after another, as one client's requests arrive."""
        started, used = time.monotonic(), read_own_cpu_seconds()
        latencies: list[float] = []
        number = 0
        for texts in requests:
            begun = time.monotonic()
            self._infer(0, self._tokenizer.encode_texts(texts))
            latencies.append(time.monotonic() - begun)
            number += len(texts)
            if time.monotonic() - started > at_most_s:
                break
        seconds = time.monotonic() - started
        used = read_own_cpu_seconds() - used
        return RawRun(number, number / seconds, latencies, 0.0, number / len(latencies), used)

    def _run_all(self, micro_batches: Sequence[Sequence[Ids]]) -> None:
        waiting: queue.SimpleQueue[Sequence[Ids]] = queue.SimpleQueue()
        for micro_batch in micro_batches:
            waiting.put(micro_batch)

        def run_thread(number: int) -> None:
            while True:
                try:
                    micro_batch = waiting.get_nowait()
                except queue.Empty:
                    return
                self._infer(number, micro_batch)

        threads = [threading.Thread(target=run_thread, args=(number,)) for number in range(len(self._requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _infer(self, number: int, ids: Sequence[Ids]) -> Any:
        feed = pad_ids(ids, self._pad) if self.pads else pack_ids(ids)
        feed.update((name, np.zeros(len(ids), np.int64)) for name in self._prompts)
        self._requests[number].infer(feed, share_inputs=True)
        return self._requests[number].get_output_tensor(0).data.copy()


def build_padded(folder: Path) -> tuple[ov.Model, object] | None:
    """Return the padded graph of a model that Vecmill builds padding-free, and its weights; None for other models."""
    from workers.models import head
    from workers.models.folder import read_folder
    from workers.models.layout import PaddedLayout
    from workers.models.weights import Weights

    read = read_folder(folder)
    if read.kind != "huggingface" or read.is_imported:
        return None
    weights, layout = Weights(read.base), PaddedLayout()
    states = build_states(read, weights, layout)
    return head.make_model(states, layout, read.modules, read.family), weights


def cut_micro_batches(lengths: Sequence[int], budget: int, *, pads: bool) -> list[list[int]]:
    """Return row numbers in micro-batches of at most `budget` tokens, with padding if `pads`, longest first."""
    cut: list[list[int]] = []
    total = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        size = lengths[cut[-1][0]] if cut and pads else lengths[row]
        if cut and total + size <= budget:
            cut[-1].append(row)
            total += size
        else:
            cut.append([row])
            total = lengths[row]
    return cut


def read_own_cpu_seconds() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
