"""OpenVINO backend: measures a model on its device, and runs inferences."""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, describe_foreign_token, describe_too_long
from workers.engine.backend import Ids, Vectors
from workers.engine.calibration import Calibration
from workers.engine.compiled_cache import get_version_folder
from workers.engine.cost_watch import CostWatch
from workers.engine.cpus import NICE, count_cpus
from workers.engine.device import DeviceError, compile_model, count_streams, read_float, translate_hint
from workers.engine.feeds import pack_ids, pad_ids
from workers.engine.micro_batches import Costs
from workers.engine.stored_costs import find_costs_path, load_costs, store_costs
from workers.engine.tokenizer import Tokenizer
from workers.models.modules import PROMPT_TOKENS
from workers.models.prepare import PreparedModel

log = logging.getLogger(__name__)

#: Length of inputs, in tokens, for which the throughput is stated.
TYPICAL_LENGTH = 32
#: A stream on all CPUs is kept if it runs an input of this length alone this many times as fast as another stream. It
#: measured 1.8 times on 2 CPUs (all-MiniLM-L6-v2, f32, AMD EPYC), and about 1 where the CPUs are one core's threads.
MIN_GAIN = 1.2
#: Inferences of each stream in this comparison.
COMPARISONS = 5

T = TypeVar("T")


class Engine:
    """The `Backend` of a worker. A vector does not depend on its micro-batch beyond float32 rounding."""

    def __init__(
        self,
        prepared: PreparedModel,
        device: str,
        streams: int,
        cache: Path,
        properties: Mapping[str, Any] | None = None,
        *,
        fixed_shapes: bool = False,
    ) -> None:
        """Compile the model; `streams` 0 means as many as OpenVINO or the number of cores suggests.

        `properties` are OpenVINO's, and replace those that Vecmill chooses; `streams` replaces their NUM_STREAMS.
        `fixed_shapes` runs the model as on an NPU.
        Raise `DeviceError` if the device does not exist or cannot run the model.
        """
        self.dimension = prepared.dimension
        self.max_tokens = prepared.max_tokens
        self._vocabulary = prepared.vocabulary_size
        self._pad = prepared.pad_id
        self._tokenizer = Tokenizer(prepared.tokenizer_path, lower_case=prepared.lower_case)
        self.before, self.after = self._tokenizer.before, self._tokenizer.after
        self._compiled = run_niced(
            lambda: compile_model(
                prepared, device.upper(), streams, cache / "compiled", properties or {}, fixed_shapes=fixed_shapes
            )
        )
        #: Compiles the model again, with one stream.
        self._compile_stream = functools.partial(compile_model, prepared, "CPU", 1, cache / "compiled")
        self._given = dict(properties or {})
        #: Whether the model may have further streams.
        self._may_add = device.upper() == "CPU" and not fixed_shapes
        self.streams = count_streams(self._compiled)
        if streams > self.streams:
            text = "running %d streams instead of the %d of --streams, because device %s runs no more at a time"
            log.warning(text, self.streams, streams, device)
        #: The float type that the device executes; "" if unknown.
        self.float_type = read_float(self._compiled)
        # None waits in the plugin for a stream, where an interactive input could not overtake. Between two inferences a
        # stream of the CPU waits for 0.1 ms. The inferences of other devices are shorter, and the next is queued there.
        self.requests = self.streams + (device.upper() != "CPU")
        self._requests = {number: self._compiled.create_infer_request() for number in range(self.requests)}
        self._input_names = [port.get_any_name() for port in self._compiled.inputs]
        #: A guess until `warm_up` measures the costs.
        self.costs = Costs(1, 0.1, 0, pads="places" not in self._input_names)
        #: Whether `warm_up` has measured them.
        self._is_measured = False
        #: Numbers of the streams that run an inference.
        self._running: set[int] = set()
        self._watch, self._watch_lock = CostWatch(), threading.Lock()
        self._costs_path = find_costs_path(get_version_folder(cache / "compiled"), prepared.revision, self._compiled)
        #: Prompts in UTF-8 that the pooling leaves out, with their tokens, the longest first.
        self._prompts: list[tuple[bytes, int]] = []
        if PROMPT_TOKENS in self._input_names:
            texts = sorted(filter(None, prepared.prompts.texts.values()), key=len, reverse=True)
            self._prompts = [(text.encode(), self._count_tokens(text)) for text in texts]
        self._warm_up_ids = self.tokenize_texts(["warm up"])

    def tokenize_texts(self, texts: Sequence[str]) -> list[Ids]:
        """See `Backend`."""
        return self._tokenizer.encode_texts(texts) if texts else []

    def count_prompt_tokens(self, text: wire.Frame) -> int:
        """See `Backend`. Of several prompts with which the text begins, the longest counts."""
        return next((tokens for prompt, tokens in self._prompts if bytes(text[: len(prompt)]) == prompt), 0)

    def _count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt as sentence-transformers counts them: without the last if that is special."""
        return len(self.tokenize_texts([prompt])[0]) - bool(len(self.after))

    def validate_ids(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        """See `Backend`."""
        if len(ids) > self.max_tokens:
            return ErrorCode.TOO_LONG, describe_too_long(len(ids), self.max_tokens)
        if not len(ids):
            return ErrorCode.INVALID_INPUT, "the input has no tokens"
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            outside = ids.min() if ids.min() < 0 else ids.max()
            return ErrorCode.INVALID_INPUT, describe_foreign_token(outside, self._vocabulary)
        return None

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int] = ()) -> Vectors:
        """See `Backend`."""
        if request >= self.streams:
            return self._infer(self._requests[request], ids, prompt_tokens)
        self._running.add(request)
        is_busy, started = len(self._running) == self.streams, time.monotonic()
        try:
            vectors = self._infer(self._requests[request], ids, prompt_tokens)
        finally:
            is_busy &= len(self._running) == self.streams
            self._running.discard(request)
        if is_busy and self._is_measured:
            self._check_costs(ids, 1000 * (time.monotonic() - started))
        return vectors

    def _check_costs(self, ids: Sequence[Ids], duration_ms: float) -> None:
        """Lower the costs if inferences turn out to be faster, because the host was busy when they were measured."""
        predicted_ms = self.costs.predict_ms([len(each) for each in ids])
        with self._watch_lock:
            factor = self._watch.record_inference(predicted_ms, duration_ms)
            if factor is None:
                return
            self.costs = self.costs.scale(factor)
        store_costs(self._costs_path, self.costs)
        text = (
            "inferences take %.2f times as long as expected, because the host was busy when their costs were measured"
        )
        log.info(text, factor)

    def _infer(self, infer_request: Any, ids: Sequence[Ids], prompt_tokens: Sequence[int] = ()) -> Vectors:
        values = pad_ids(ids, self._pad) if self.costs.pads else pack_ids(ids)
        if PROMPT_TOKENS in self._input_names:
            values[PROMPT_TOKENS] = np.array(prompt_tokens or [0] * len(ids), np.int64)
        infer_request.infer(values, share_inputs=True)
        vectors: Vectors = infer_request.get_output_tensor(0).data
        return vectors

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all streams in micro-batches of inputs of `TYPICAL_LENGTH`."""
        return self.streams * self.costs.compute_speed(min(TYPICAL_LENGTH, self.max_tokens))

    def get_divisors(self, request: int) -> Vectors | None:
        """See `Backend`."""
        if len(self._compiled.outputs) == 1:
            return None
        divisors: Vectors = self._requests[request].get_output_tensor(1).data
        return divisors

    def open_spare_request(self) -> int | None:
        """See `Backend`: a stream of its own, which takes the memory of another compiled model."""
        # The stream has no thread of its own: it runs in the thread that calls.
        return self._add_stream(self.requests, {"INFERENCE_NUM_THREADS": 1}, "during bulk work")

    def open_wide_request(self, borrow: Callable[[], AbstractContextManager[Sequence[int]]]) -> int | None:
        """See `Backend`: a stream with a thread for each CPU, which takes the memory of another compiled model."""
        if self.streams == 1:
            return None
        threads = {"INFERENCE_NUM_THREADS": count_cpus()} | self._given
        wide = self._add_stream(self.requests + 1, threads, "on all CPUs")
        if wide is None:
            return None
        with borrow() as others:
            gain = self._compare_requests(others[0], wide) if others else 0.0
        if gain >= MIN_GAIN:
            log.info("a short input alone runs %.1f times as fast on all CPUs", gain)
            return wide
        if others:
            log.info("a short input alone runs only %.1f times as fast on all CPUs; closed that stream", gain)
        else:
            log.info("closed that stream, because the others are too busy to be compared with it")
        del self._requests[wide]
        return None

    def _add_stream(self, number: int, properties: Mapping[str, Any], purpose: str) -> int | None:
        """Open an infer request of a stream of its own, and return its number, or None if that fails."""
        if not self._may_add:
            return None
        # The same precision, because a vector must not depend on the stream. A thread that is not pinned to a CPU runs
        # where the others are interrupted first.
        same = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        try:
            given = self._given | {name: self._compiled.get_property(name) for name in same}
            given |= {"ENABLE_CPU_PINNING": False, **properties}
            # The compilation runs on all CPUs, and would delay inferences.
            request = run_niced(lambda: self._compile_stream(given)).create_infer_request()
            self._infer(request, self._warm_up_ids)
        except Exception as error:  # whatever a device plugin raises: the model runs without this stream
            log.warning("no stream for interactive inputs %s: %s: %s", purpose, type(error).__name__, error)
            return None
        self._requests[number] = request
        log.info("opened a stream for interactive inputs %s", purpose)
        return number

    def _compare_requests(self, first: int, second: int) -> float:
        """Return how many times as fast the second infer request runs a short input. Other threads may only delay."""
        ids = [np.full(min(TYPICAL_LENGTH, self.max_tokens), self._pad, np.int64)]
        shortest = {first: math.inf, second: math.inf}
        for number in [first, second] * COMPARISONS:
            started = time.monotonic()
            self.run_inference(number, ids)
            shortest[number] = min(shortest[number], time.monotonic() - started)
        return shortest[first] / shortest[second]

    def verify_device(self, request: int) -> None:
        """See `Backend`."""
        self.run_inference(request, self._warm_up_ids)

    def warm_up(self) -> None:
        """Run an inference, then measure the costs, unless an earlier process has stored them.

        Raise `DeviceError` if the inference returns a vector that is not finite.
        """
        if not np.isfinite(self.run_inference(0, self._warm_up_ids)).all():
            float_type = translate_hint(str(self._given.get("INFERENCE_PRECISION_HINT", "f32")))
            if float_type != "f32":
                raise DeviceError(
                    f"the model returned a vector that is not finite in {float_type}; set --precision f32"
                )
            raise DeviceError(
                "the model returned a vector that is not finite, so its weights are damaged or too large for float32; "
                "download the model again"
            )
        calibration = Calibration(self.run_inference, self.streams, self.max_tokens, self._pad, pads=self.costs.pads)
        stored = load_costs(self._costs_path)
        if stored and stored.pads == self.costs.pads and calibration.confirm_costs(stored):
            self.costs = stored
        else:
            self.costs = calibration.measure_costs()
            store_costs(self._costs_path, self.costs)
        self._is_measured = True


def run_niced(function: Callable[[], T]) -> T:
    """Return what the function returns. The threads that the function starts, OpenVINO's, keep a lower priority."""
    with ThreadPoolExecutor(1, initializer=os.nice, initargs=(NICE,)) as thread:
        return thread.submit(function).result()
