"""Golden models of `tests/data/families`, which `scripts/make_goldens.py` makes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import openvino as ov
from safetensors.numpy import load_file

from tests.harness.data import DATA
from workers.engine.feeds import Feed, pack_ids
from workers.models.folder import ModelFolder
from workers.models.layout import PaddedLayout
from workers.models.packed_layout import PackedLayout
from workers.models.precision import WeightFormat, compress_weights
from workers.models.prepare import build_states
from workers.models.source import INT8_GROUP
from workers.models.weights import Weights

FAMILIES = DATA / "families"
#: Largest difference to transformers.
TOLERANCE = 1e-5

Ids = npt.NDArray[np.int64]
States = npt.NDArray[np.float32]


class Golden(NamedTuple):
    """A small random model, texts, and what transformers makes of them."""

    path: Path
    config: dict[str, Any]
    #: Token ids of each text.
    texts: list[Ids]
    #: For each text: the last hidden states of the first, the middle and the last token, and the mean of all.
    states: list[States]


def read_golden(name: str) -> Golden:
    """Return a golden model of `tests/data/families` by the name of its folder."""
    path = FAMILIES / name
    vectors = load_file(path / "vectors.safetensors")
    ends = np.cumsum(vectors["lengths"])
    texts = np.split(vectors["ids"].astype(np.int64), ends[:-1])
    config = json.loads((path / "config.json").read_text())
    return Golden(path, config, texts, list(vectors["states"]))


class Graph:
    """A golden model, compiled. Takes ids and an attention mask, and returns states, all `[texts, length, …]`."""

    layout: type[PaddedLayout] = PaddedLayout

    def __init__(self, golden: Golden, precision: str = "f32", **changes: Any) -> None:
        """Build the model; `changes` are made in its config.json, where None stands for null."""
        config = golden.config | changes
        # All that the builders use of a folder; most golden models have no tokenizer.
        folder = cast(
            ModelFolder,
            SimpleNamespace(
                path=golden.path,
                base=golden.path,
                config_path=golden.path / "config.json",
                config=config,
                family=config["model_type"],
            ),
        )
        # The compiled model refers to the mapped weights.
        self._weights, layout = Weights(golden.path), self.layout()
        states = build_states(folder, self._weights, layout)
        model, settings = ov.Model([states], layout.inputs), {"INFERENCE_PRECISION_HINT": precision}
        if precision == "int8":
            compress_weights(model, WeightFormat(name="int8"))
            settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT8_GROUP}
        self._compiled = ov.Core().compile_model(model, "CPU", settings)

    def __call__(self, ids: Ids, mask: Ids) -> States:
        return cast(States, self._compiled([ids, mask])[0].copy())

    def infer(self, feed: Feed) -> States:
        """Return the states for the inputs of the model's layout."""
        return cast(States, self._compiled(feed)[0].copy())

    def count_operations(self) -> Counter[str]:
        """Return how many operations of each kind the CPU runs."""
        return Counter(node.get_rt_info()["layerType"].value for node in self._compiled.get_runtime_model().get_ops())


class PackedGraph(Graph):
    """A golden model that takes the tokens of all texts end to end. Returns zeros for padding."""

    layout = PackedLayout

    def __call__(self, ids: Ids, mask: Ids) -> States:
        rows = mask.any(1)
        packed = self.infer(pack_ids([row[kept == 1] for row, kept in zip(ids[rows], mask[rows], strict=True)]))[0]
        states = np.zeros((*mask.shape, packed.shape[1]), np.float32)
        # The last rows belong to no text.
        states[mask == 1] = packed[: np.count_nonzero(mask)]
        return states


def pad_texts(texts: Sequence[Ids], pad_id: int = 0, *, left: bool = False) -> tuple[Ids, Ids]:
    """Return the ids and the attention mask of texts, `[texts, length]`, padded on the right or on the left."""
    length = max(map(len, texts))
    ids, mask = np.full((len(texts), length), pad_id), np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        where = slice(length - len(text), length) if left else slice(len(text))
        ids[row, where], mask[row, where] = text, 1
    return ids, mask


def summarize_states(states: Any) -> States:
    """Return of the states `[length, size]` of one text what `Golden.states` holds."""
    rows = [states[0], states[len(states) // 2], states[-1], states.mean(0, dtype=np.float64)]
    return np.array(rows, np.float32)


def measure_difference(golden: Golden, infer: Callable[[Ids, Ids], States]) -> float:
    """Return the largest difference between golden states and those of a graph, alone and in a crowd.

    The crowd are all texts of the model in one batch, and once more with a row that is masked entirely.
    """
    worst = 0.0
    for found, expected in compare_states(golden, infer):
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def measure_least_cosine(golden: Golden, infer: Callable[[Ids, Ids], States]) -> float:
    """Return the lowest cosine of golden states, such as those of the first token, to those of a graph; see above."""
    return min(
        float((found * expected).sum(1).min())
        for found, expected in (
            (one / np.linalg.norm(one, axis=1, keepdims=True), two / np.linalg.norm(two, axis=1, keepdims=True))
            for one, two in compare_states(golden, infer)
        )
    )


def compare_states(golden: Golden, infer: Callable[[Ids, Ids], States]) -> Iterator[tuple[States, States]]:
    """Yield the summary of a graph's states and the golden ones, of each text alone and in a crowd.

    All states must be finite, also those of padding.
    """
    for text, expected in zip(golden.texts, golden.states, strict=True):
        states = infer(*pad_texts([text]))
        assert np.isfinite(states).all()
        yield summarize_states(states[0]), expected
    for texts in (golden.texts, [*golden.texts[:-1], golden.texts[0][:0]]):
        states = infer(*pad_texts(texts))
        assert np.isfinite(states).all()
        for row, text, expected in zip(states, texts, golden.states, strict=True):
            if len(text):
                yield summarize_states(row[: len(text)]), expected
