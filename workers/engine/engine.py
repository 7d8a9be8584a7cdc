"""The OpenVINO backend: compiles a prepared model for a device, warms it up, measures it, runs it."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from broker.wire.errors import ErrorCode, describe_foreign_token, describe_too_long
from workers.engine.backend import Ids, Vectors
from workers.engine.tokenizer import Tokenizer
from workers.models import PreparedModel

log = logging.getLogger(__name__)

#: Micro-batch sizes tried at warm-up, in padded tokens, and the length of the rows they are tried with.
CALIBRATION_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384)
CALIBRATION_LENGTH = 32
#: A larger micro-batch must raise the throughput by this much to be worth its latency.
WORTHWHILE_GAIN = 1.03


class DeviceError(Exception):
    """The device cannot run the model; the text is one sentence for the person who chose it."""


class Engine:
    """A `Backend`. Vectors do not depend on what else is in a micro-batch beyond float32 rounding."""

    def __init__(self, prepared: PreparedModel, device: str, streams: int, cache: Path) -> None:
        self.dimension = prepared.dimension
        self.micro_batch_tokens = CALIBRATION_TOKENS[1]
        self.tokens_per_second = 0.0
        self._max_tokens = prepared.max_tokens
        self._vocabulary = prepared.vocabulary_size
        self._pad = prepared.pad_id
        self._tokenizer = Tokenizer(prepared.tokenizer_path, prepared.max_tokens)
        #: Ids around every text.
        self.before, self.after = self._tokenizer.before.tolist(), self._tokenizer.after.tolist()
        core = ov.Core()
        core.set_property({"CACHE_DIR": str(cache / "compiled")})
        device = device.upper()
        known = core.available_devices
        if device.partition(":")[0] in ("AUTO", "MULTI", "HETERO", "BATCH"):
            raise DeviceError(f"a worker runs one device, and {device} is none; choose one of {', '.join(known)}")
        if device.partition(".")[0] not in {name.partition(".")[0] for name in known}:
            raise DeviceError(f"there is no device {device} here; OpenVINO sees {', '.join(known)}")
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        if streams or device == "CPU":
            # One stream a core gave the most texts/s on the CPU plugin; its own choice is one for several cores.
            properties["NUM_STREAMS"] = streams or len(os.sched_getaffinity(0))
        try:
            self._compiled = core.compile_model(prepared.model_path, device, properties)
            self.streams = int(self._compiled.get_property("NUM_STREAMS"))
        except RuntimeError as error:
            # OpenVINO tells its own lines of code first, and ends with empty ones.
            reason = str(error).strip().rpartition("\n")[2]
            raise DeviceError(f"{device} cannot compile the model: {reason}") from error
        self.requests = self.streams + 1
        self._requests = [self._compiled.create_infer_request() for _ in range(self.requests)]
        self._known = self.tokenise(["warm up"])
        self._inputs = [port.get_any_name() for port in self._compiled.inputs]

    def tokenise(self, texts: Sequence[str]) -> list[Ids]:
        """See `Backend`."""
        return self._tokenizer.encode(texts) if texts else []

    def refusal(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        """See `Backend`; the wording is OVMS's."""
        if len(ids) > self._max_tokens:
            return ErrorCode.TOO_LONG, describe_too_long(len(ids), self._max_tokens)
        if not len(ids):
            return ErrorCode.INVALID_INPUT, "the input has no tokens"
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            outside = ids.min() if ids.min() < 0 else ids.max()
            return ErrorCode.INVALID_INPUT, describe_foreign_token(outside, self._vocabulary)
        return None

    def truncate(self, ids: Ids, at_start: bool) -> Ids:
        """See `Backend`."""
        return self._tokenizer.truncate(ids, at_start=at_start)

    def infer(self, request: int, ids: Sequence[Ids]) -> Vectors:
        """See `Backend`."""
        lengths = np.array([len(one) for one in ids])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(mask.shape, self._pad, np.int64)
        padded[mask] = np.concatenate(ids)
        values = {"input_ids": padded, "attention_mask": mask.astype(np.int64)}
        if "token_type_ids" in self._inputs:
            values["token_type_ids"] = np.zeros_like(padded)
        infer = self._requests[request]
        infer.infer(values, share_inputs=True)
        vectors: Vectors = infer.get_output_tensor(0).data
        return vectors

    def divisors(self, request: int) -> Vectors | None:
        """See `Backend`."""
        if len(self._compiled.outputs) == 1:
            return None
        divisors: Vectors = self._requests[request].get_output_tensor(1).data
        return divisors

    def check(self, request: int) -> None:
        """See `Backend`."""
        self.infer(request, self._known)

    def warm_up(self) -> None:
        """Complete an inference, and find the micro-batch size beyond which the device gets no faster."""
        self.infer(0, self._known)
        best = 0.0
        for tokens in CALIBRATION_TOKENS:
            speed = self._measure(tokens)
            log.debug("micro-batches of %d tokens: %.0f tokens/s", tokens, speed)
            if speed < best * WORTHWHILE_GAIN:
                break
            best, self.micro_batch_tokens = speed, tokens
        self.tokens_per_second = best * self.streams

    def _measure(self, tokens: int) -> float:
        """Tokens/s of one stream with micro-batches of this size, the best of a few runs."""
        length = min(CALIBRATION_LENGTH, self._max_tokens)
        rows = [np.full(length, self._pad, np.int64)] * max(1, tokens // length)
        times = []
        for _ in range(3):
            started = time.monotonic()
            self.infer(0, rows)
            times.append(time.monotonic() - started)
        return len(rows) * length / min(times)
