"""Modules of sentence-transformers: how hidden states become vectors. Does not import OpenVINO.

`modules.json` lists the modules in their order. Old versions of sentence-transformers write other types and keys than
new versions; this module reads both (sentence-transformers 6.2, `base/model.py` and `sentence_transformer/modules`).
"""

import reprlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from workers.models.contents import check_folder
from workers.models.json_files import REMEDY, ModelError, is_present, read_count, read_flag, read_json, read_object

#: Switches of the pooling modes in sentence-transformers before version 5, which writes the modes' names, in the order
#: in which the vectors of several modes are concatenated.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_SWITCHES.values())
#: Input of a graph, int64 `[batch]`: how many tokens at the start of each text the pooling leaves out.
PROMPT_TOKENS = "prompt_tokens"
#: Start of the types that sentence-transformers has itself. Others are code in the folder, which Vecmill never runs.
_PACKAGE = "sentence_transformers."
#: Values that a module takes and returns: one vector for each token, or one for the text.
_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"
#: Classes of torch.nn that a Dense module may apply.
DENSE_ACTIVATIONS = ("Tanh", "Identity", "GELU", "ReLU", "Sigmoid", "SiLU")

S = TypeVar("S")


class Pooling(msgspec.Struct, frozen=True, tag=True):
    """Reduces the hidden states of a text to one vector; the vectors of several modes are concatenated."""

    modes: tuple[str, ...]
    #: Whether the tokens of a prompt count.
    include_prompt: bool = True


class Dense(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Linear layer with an activation. The weights are in `folder`."""

    folder: Path
    into: int
    out: int
    has_bias: bool
    #: One of `DENSE_ACTIVATIONS`.
    activation: str
    #: Whether the input is added to the output, through a linear layer if their sizes differ.
    is_residual: bool


class LayerNorm(msgspec.Struct, frozen=True, tag=True):
    """Layer norm of the vector. The weights are in `folder`."""

    folder: Path
    size: int


class Normalize(msgspec.Struct, frozen=True, tag=True):
    """Scales vectors to length 1."""


Step = Pooling | Dense | LayerNorm | Normalize


class Modules(msgspec.Struct, frozen=True, kw_only=True):
    """What follows the transformer, or the token table of a static model."""

    #: Folder of config.json, the weights and the tokenizer.
    base: Path
    #: Whether the model is a table of token vectors instead of a transformer.
    is_static: bool = False
    #: Steps in their order; those before `Pooling` apply to each token.
    steps: tuple[Step, ...] = ()
    #: Values to which each vector is cut at the end; None: all.
    truncate_dim: int | None = None

    def find_step(self, kind: type[S]) -> S | None:
        """Return the first step of a kind, or None."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    @property
    def pooling(self) -> tuple[str, ...]:
        """Pooling modes; none for a static model, which is a mean of its tokens."""
        pooling = self.find_step(Pooling)
        return pooling.modes if pooling else ()

    @property
    def excludes_prompt(self) -> bool:
        """Whether the pooling leaves out the tokens of a prompt, so that the graph has the input `PROMPT_TOKENS`."""
        pooling = self.find_step(Pooling)
        return pooling is not None and not pooling.include_prompt

    @property
    def is_normalized(self) -> bool:
        """Whether vectors have length 1."""
        return bool(self.steps) and isinstance(self.steps[-1], Normalize) and self.truncate_dim is None

    @property
    def weight_folders(self) -> list[Path]:
        """Folders of the modules after the transformer that have weights."""
        return [step.folder for step in self.steps if isinstance(step, Dense | LayerNorm)]

    def replace_pooling(self, mode: str) -> "Modules":
        """Return the modules with another pooling mode."""
        steps = tuple(
            msgspec.structs.replace(step, modes=(mode,)) if isinstance(step, Pooling) else step for step in self.steps
        )
        return msgspec.structs.replace(self, steps=steps)

    def replace_normalization(self, normalize: bool) -> "Modules":
        """Return the modules with, or without, normalization at their end."""
        ends = bool(self.steps) and isinstance(self.steps[-1], Normalize)
        steps = self.steps[:-1] if ends else self.steps
        return msgspec.structs.replace(self, steps=(*steps, Normalize()) if normalize else steps)


def read_modules(root: Path) -> Modules | None:
    """Return the modules that a folder declares, or None if the folder has no modules.json.

    Raise `ModelError` for modules that Vecmill does not support.
    """
    file = root / "modules.json"
    if not is_present(file):
        return None
    entries = [_read_entry(file, entry) for entry in _read_list(file)]
    kinds = [kind for kind, _ in entries]
    if not kinds or kinds[0] not in ("Transformer", "StaticEmbedding"):
        raise ModelError(f"{file} does not begin with a Transformer or StaticEmbedding module; {REMEDY}")
    base = root / entries[0][1]
    is_static = kinds[0] == "StaticEmbedding"
    if kinds.count("Pooling") != (0 if is_static else 1):
        raise ModelError(
            f"{file} has {kinds.count('Pooling')} Pooling modules, but a model has one after a Transformer module and "
            f"none after a StaticEmbedding module; {REMEDY}"
        )
    for _, inside in entries:
        if (root / inside).is_dir():
            check_folder(root, root / inside)
    steps: list[Step] = []
    value = _SENTENCE if is_static else _TOKENS
    for kind, inside in entries[1:]:
        step = _read_step(file, kind, root / inside, value)
        if isinstance(step, Pooling):
            value = _SENTENCE
        if step is not None:
            steps.append(step)
    return Modules(base=base, is_static=is_static, steps=tuple(steps))


def _read_list(file: Path) -> list[Any]:
    modules = read_json(file)
    if not isinstance(modules, list):
        raise ModelError(f"{file} is not a list of modules with type and path; {REMEDY}")
    return modules


def _read_entry(file: Path, entry: Any) -> tuple[str, str]:
    """Return the kind of a module and its path in the model folder."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("type", "path")):
        raise ModelError(f"{file} is not a list of modules with type and path; {REMEDY}")
    kind, inside = entry["type"], entry["path"]
    if Path(inside).is_absolute() or ".." in Path(inside).parts or "\0" in inside:
        raise ModelError(f"{file}: path {reprlib.repr(inside)} leads out of the model folder; {REMEDY}")
    if not kind.startswith(_PACKAGE):
        raise ModelError(
            f"{file}: type {reprlib.repr(kind)} is not a module of sentence-transformers but code, which Vecmill never "
            "runs; choose a model without code of its own"
        )
    return kind.rpartition(".")[2], inside


def _read_step(file: Path, kind: str, folder: Path, value: str) -> Step | None:
    """Return a module after the first, which takes and returns `value`; None for a module that changes no vector."""
    if kind == "Pooling":
        return read_pooling(folder / "config.json")
    if kind == "Dense":
        return _read_dense(folder, value)
    if kind == "LayerNorm" and value == _SENTENCE:
        path = folder / "config.json"
        return LayerNorm(folder, read_count(path, read_object(path), "dimension"))
    if kind == "Normalize":
        path = folder / "config.json"  # old versions write none
        _check_value(path, read_object(path) if is_present(path) else {}, value, _SENTENCE)
        return Normalize()
    if kind == "Dropout":
        return None
    raise ModelError(
        f"{file} has the module {reprlib.repr(kind)} in {reprlib.repr(folder.name)}, which Vecmill does not support "
        "there; choose a model without it"
    )


def read_pooling(path: Path) -> Pooling:
    """Return a Pooling module; mean if the module names no mode, as sentence-transformers does."""
    config = read_object(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _SWITCHES.items() if read_flag(path, config, key, False)] or "mean"
    names = (modes,) if isinstance(modes, str) else tuple(modes) if isinstance(modes, list) else ()
    if not names or not all(isinstance(name, str) and name in POOLING_MODES for name in names):
        known = ", ".join(POOLING_MODES)
        raise ModelError(f"{path}: pooling_mode is {reprlib.repr(modes)}, but must be one or several of {known}")
    return Pooling(names, read_flag(path, config, "include_prompt", True))


def _read_dense(folder: Path, value: str) -> Dense:
    path = folder / "config.json"
    config = read_object(path)
    _check_value(path, config, value, _SENTENCE)
    return Dense(
        folder=folder,
        into=read_count(path, config, "in_features"),
        out=read_count(path, config, "out_features"),
        has_bias=read_flag(path, config, "bias", True),
        activation=_read_activation(path, config),
        is_residual=read_flag(path, config, "use_residual", False),
    )


def _read_activation(path: Path, config: dict[str, Any]) -> str:
    """Return the activation of a Dense module, which is Tanh if it is not declared or not one of torch's."""
    named = config.get("activation_function", "torch.nn.Tanh")
    if isinstance(named, str) and not named.startswith("torch."):
        return "Tanh"
    name = named.rpartition(".")[2] if isinstance(named, str) else None
    if name not in DENSE_ACTIVATIONS:
        known = ", ".join(f"torch.nn.{known}" for known in DENSE_ACTIVATIONS)
        raise ModelError(f"{path}: activation_function is {reprlib.repr(named)}, but Vecmill supports {known}")
    return name


def _check_value(path: Path, config: dict[str, Any], value: str, default: str) -> None:
    """Raise `ModelError` if a module does not take and return `value`."""
    takes = config.get("module_input_name") or default
    returns = config.get("module_output_name") or takes
    for key, found in (("module_input_name", takes), ("module_output_name", returns)):
        if found != value:
            raise ModelError(f"{path}: {key} is {reprlib.repr(found)}, but Vecmill supports only {value} there")
