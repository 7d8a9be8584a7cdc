"""From a model folder to files that the engine compiles: reads, converts, caches. Runs no inference.

`python -m workers.models.prepare --model FOLDER --cache FOLDER` does it ahead of a worker's start.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workers.models import cache as entries
from workers.models.folder import EXPORT_HINT, ModelError, ModelFolder, read_folder
from workers.models.prompts import Matryoshka, Prompts, read_matryoshka, read_prompts

#: Part of every revision: raise it when a conversion would give other vectors than before.
CONVERTER = 4
#: Of weights and activations, on every device, so that all of them give the same vectors.
PRECISION = "f32"
#: The module that builds each `model_type`; a family is one module here.
FAMILIES = {"bert": "workers.models.bert"}
#: Fields of config.json that say who wrote it, how, and that vectors may be cut; they change no vector.
_NOT_SHAPING = frozenset(
    {"architectures", "dtype", "is_matryoshka", "matryoshka_dimensions", "torch_dtype", "transformers_version"}
)

Report = Callable[[str], None]


class PreparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model ready to be compiled."""

    #: Two models with the same revision give the same vectors. 32 hexadecimal digits.
    revision: str
    model_path: Path
    tokenizer_path: Path
    #: Values in a vector.
    dimension: int
    #: Longest input in tokens, special ones included.
    max_tokens: int
    #: CLS, MEAN or LAST.
    pooling: str
    #: Whether vectors are scaled to length 1.
    normalize: bool
    #: Token ids are below this.
    vocabulary_size: int
    pad_id: int
    prompts: Prompts
    matryoshka: Matryoshka


def prepare_model(path: Path, cache: Path, report: Report) -> PreparedModel:
    """The folder's model, converted if it is not in the cache. ModelError says why it cannot be served."""
    folder = read_folder(path)
    if folder.family not in FAMILIES:
        raise ModelError(
            f"{path} is a model of the type {folder.family!r}, and Vecmill itself builds only "
            f"{', '.join(FAMILIES)}; {EXPORT_HINT}"
        )
    prompts = read_prompts(folder, report)
    revision = _revision(folder, prompts)
    made_by = _versions()
    facts = entries.find_entry(cache, revision, made_by)
    if facts is None:
        report(f"converting {path} (once; kept in {cache})")
        try:
            facts = entries.store_entry(cache, revision, made_by, lambda into: _convert(folder, into, report))
        except (OSError, RuntimeError) as error:  # OpenVINO has only RuntimeError, for a full disk too
            raise ModelError(f"the converted model cannot be made in {cache}: {error}") from None
    entry = entries.get_entry_folder(cache, revision)
    return PreparedModel(
        revision=revision,
        model_path=entry / entries.MODEL,
        tokenizer_path=entry / entries.TOKENIZER,
        dimension=facts.dimension,
        max_tokens=folder.max_tokens,
        pooling=folder.pooling,
        normalize=folder.normalize,
        vocabulary_size=facts.vocabulary_size,
        pad_id=facts.pad_id,
        prompts=prompts,
        matryoshka=read_matryoshka(path, folder.config),
    )


def _revision(folder: ModelFolder, prompts: Prompts) -> str:
    """A hash of everything that a plain request's vectors depend on. 90 MB of weights take 0.06 s with SHA
    instructions."""
    config = {
        key: value
        for key, value in sorted(folder.config.items())
        if key not in _NOT_SHAPING and not key.startswith("_")
    }
    rest = [CONVERTER, PRECISION, folder.family, folder.pooling, folder.normalize, folder.max_tokens, config]
    rest += [prompts.texts.get(prompts.default, "")]
    digest = hashlib.sha256(msgspec.json.encode(rest))
    for path in (folder.weights, folder.tokenizer):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
    return digest.hexdigest()[:32]


def _versions() -> str:
    names = ("openvino", "openvino-tokenizers")
    return ", ".join([f"converter {CONVERTER}", *(f"{name} {importlib.metadata.version(name)}" for name in names)])


def _convert(folder: ModelFolder, into: Path, report: Report) -> entries.Facts:
    import openvino as ov

    from workers.models.tokenizers import convert_tokenizer

    report("  building the OpenVINO model")
    model = importlib.import_module(FAMILIES[folder.family]).build(folder, _read_weights(folder.weights))
    ov.save_model(model, into / entries.MODEL, compress_to_fp16=False)
    report("  converting the tokenizer")
    ov.save_model(convert_tokenizer(folder), into / entries.TOKENIZER, compress_to_fp16=False)
    return entries.Facts(
        dimension=model.output(0).get_partial_shape()[1].get_length(),
        vocabulary_size=int(folder.config["vocab_size"]),
        pad_id=int(folder.config.get("pad_token_id") or 0),
        made_by="",
    )


def _read_weights(path: Path) -> dict[str, Any]:
    """All floating-point tensors by name, bfloat16, which numpy does not have, as float32."""
    import numpy as np
    from safetensors import SafetensorError, deserialize

    tensors: dict[str, Any] = {}
    try:
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            raw, kind = tensor["data"], tensor["dtype"]
            if kind == "BF16":
                # bfloat16 is the upper half of a float32.
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            elif kind in ("F16", "F32", "F64"):
                values = np.frombuffer(raw, f"<f{int(kind[1:]) // 8}")
            elif kind.startswith(("I", "U", "BOOL")):
                continue  # such as position ids, which the graph makes itself
            else:
                raise ModelError(f"{path}: {name} is of the type {kind}; Vecmill reads F32, F16, BF16 and F64")
            tensors[name] = values.reshape(tensor["shape"])
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return tensors


def main() -> None:
    """Exit status 1 with one sentence when the model cannot be prepared."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.prepare", description="Convert a model folder.")
    parser.add_argument("--model", type=Path, required=True, help="the folder")
    parser.add_argument("--cache", type=Path, required=True, help="where converted models are kept")
    options = parser.parse_args()
    try:
        prepared = prepare_model(options.model, options.cache, lambda text: print(text, file=sys.stderr, flush=True))
    except ModelError as error:
        sys.exit(f"vecmill: {error}")
    print(prepared.model_path.parent)


if __name__ == "__main__":
    main()
