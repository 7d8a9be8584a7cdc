"""From a model folder to files that the engine compiles: reads, converts, caches.

`python -m workers.models.prepare --model FOLDER --cache FOLDER` does it ahead of a worker's start.
"""

import argparse
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from workers.models import cache as entries
from workers.models.folder import ModelError, ModelFolder, read_folder

#: Part of every revision: raise it when a conversion would give another result.
CONVERTER = 1
#: Of weights and activations, on every device, so that all of them give the same vectors.
PRECISION = "f32"
#: The module that builds each `model_type`; a family is one module here.
FAMILIES = {"bert": "workers.models.bert"}


class PreparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model ready to be compiled."""

    #: Two models with the same revision give the same vectors.
    revision: str
    model_path: Path
    tokenizer_path: Path
    #: Values in a vector.
    dimension: int
    #: Longest input in tokens, special ones included.
    max_tokens: int
    pooling: str
    normalize: bool
    vocabulary_size: int
    pad_id: int


def prepare_model(path: Path, cache: Path, report: Callable[[str], None]) -> PreparedModel:
    """The folder's model, converted if it is not in the cache. ModelError says why it cannot be served."""
    folder = read_folder(path)
    if folder.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{path} is a model of the type {folder.family!r}; Vecmill builds {known}")
    revision = _revision(folder)
    facts = entries.find(cache, revision)
    if facts is None:
        report(f"converting {path} (once; kept in {cache})")
        try:
            entries.store(cache, revision, lambda into: _convert(folder, into, report))
        except OSError as error:
            raise ModelError(f"the converted model cannot be written to {cache}: {error}") from None
        facts = entries.find(cache, revision)
        if facts is None:
            raise ModelError(f"the converted model in {cache} is damaged as soon as it is written")
    entry = entries.folder(cache, revision)
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
    )


def _revision(folder: ModelFolder) -> str:
    """A hash of everything that the vectors depend on."""
    config = {key: value for key, value in sorted(folder.config.items()) if not key.startswith("_")}
    rest = [CONVERTER, PRECISION, folder.family, folder.pooling, folder.normalize, folder.max_tokens, config]
    digest = hashlib.sha256(msgspec.json.encode(rest))
    for path in (folder.weights, folder.tokenizer):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _convert(folder: ModelFolder, into: Path, report: Callable[[str], None]) -> entries.Facts:
    import openvino as ov

    from workers.models.tokenizers import convert_tokenizer

    report("  building the OpenVINO model")
    model = importlib.import_module(FAMILIES[folder.family]).build(folder, _read_weights(folder.weights))
    ov.save_model(model, into / entries.MODEL, compress_to_fp16=False)
    report("  converting the tokenizer")
    ov.save_model(convert_tokenizer(folder), into / entries.TOKENIZER, compress_to_fp16=False)
    config = folder.config
    return entries.Facts(
        dimension=model.output(0).get_partial_shape()[1].get_length(),
        vocabulary_size=int(config["vocab_size"]),
        pad_id=int(config.get("pad_token_id") or 0),
        files={},
    )


def _read_weights(path: Path) -> dict[str, object]:
    """All tensors; bfloat16, which numpy does not have, as float32."""
    import numpy as np
    from safetensors import SafetensorError, deserialize

    tensors: dict[str, object] = {}
    try:
        for name, tensor in deserialize(path.read_bytes()):
            raw, kind = tensor["data"], tensor["dtype"]
            if kind == "BF16":
                values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            elif kind in ("F32", "F16", "F64"):
                values = np.frombuffer(raw, f"<f{int(kind[1:]) // 8}")
            else:
                continue
            tensors[name] = values.reshape(tensor["shape"])
    except (SafetensorError, ValueError) as error:
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
