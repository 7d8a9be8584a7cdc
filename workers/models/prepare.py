"""Conversion of a model folder to files that the engine compiles, kept in the cache. Runs no inference.

`python -m workers.models.prepare --model FOLDER --cache FOLDER` converts a model before a worker starts.
"""

import hashlib
import importlib
import importlib.metadata
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from broker.shared.exit import exit_refused
from broker.shared.flags import FlagParser
from workers.models import cache as entries
from workers.models.folder import ModelFolder, read_folder
from workers.models.graph_files import find_graph_file
from workers.models.json_files import EXPORT, ModelError, read_count, summarize_error
from workers.models.openvino_lock import OPENVINO_LOCK
from workers.models.prompts import Matryoshka, Prompts, read_matryoshka, read_prompts
from workers.models.source import INT8_GROUP, Overrides

#: Version of the conversion, part of every revision. Increase it with each change that changes vectors.
CONVERTER = 6
#: Precision to which those of all floats belong, because their vectors differ less than an index can show.
PRECISION = "f32"
#: Module that builds the graph of each `model_type`.
FAMILIES = {
    "bert": "workers.models.encoder",
    "camembert": "workers.models.encoder",
    "distilbert": "workers.models.encoder",
    "eurobert": "workers.models.decoder",
    "gemma3_text": "workers.models.decoder",
    "gte": "workers.models.encoder",
    "jina_embeddings_v3": "workers.models.encoder",
    "llama": "workers.models.decoder",
    "mistral": "workers.models.decoder",
    "modernbert": "workers.models.modernbert",
    "mpnet": "workers.models.encoder",
    "new": "workers.models.encoder",
    "nomic_bert": "workers.models.encoder",
    "qwen2": "workers.models.decoder",
    "qwen3": "workers.models.decoder",
    "roberta": "workers.models.encoder",
    "xlm-roberta": "workers.models.encoder",
}
#: Families whose activations exceed the range of float16; text-embeddings-inference serves them in float32 only, too.
FLOAT32_FAMILIES = frozenset({"gemma3_text"})
#: Fields of config.json that do not change vectors.
_IRRELEVANT_FIELDS = frozenset(
    {"_name_or_path", "architectures", "dtype", "is_matryoshka", "matryoshka_dimensions", "torch_dtype"}
    | {"transformers_version"}
)

if TYPE_CHECKING:
    from workers.models.layout import PaddedLayout
    from workers.models.weights import Weights

Report = Callable[[str], None]


class PreparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A converted model, ready to be compiled."""

    #: Hash of everything that determines the vectors, 32 hexadecimal digits.
    revision: str
    model_path: Path
    tokenizer_path: Path
    #: Values in a vector.
    dimension: int
    #: Longest input in tokens, special tokens included.
    max_tokens: int
    #: Whether the model scales vectors to length 1.
    normalize: bool
    #: Token ids are below this number.
    vocabulary_size: int
    pad_id: int
    #: Whether texts are lower-cased before the tokenizer's own normalization.
    lower_case: bool
    prompts: Prompts
    matryoshka: Matryoshka
    #: Whether inputs that are too long are truncated by default.
    truncates: bool = False
    #: Whether activations overflow in float16.
    needs_float32: bool = False
    #: Keeps the files in the cache.
    use: Any = None


def prepare_model(
    path: Path,
    cache: Path,
    report: Report,
    overrides: Overrides | None = None,
    check: Callable[[bool], object] = lambda _: None,
) -> PreparedModel:
    """Return the folder's model, converted if it is not in the cache. Raise `ModelError` if it cannot be served.

    `report` gets a line for each step of a conversion. `check` is called before a conversion with whether activations
    overflow in float16, and may raise an exception.
    """
    overrides = overrides or Overrides()
    folder = _read_supported_folder(path, overrides)
    if folder.replaced_pooling:
        report(
            f"warning: {path} declares the pooling {'+'.join(folder.replaced_pooling)}, but the configuration asks for "
            f"{overrides.pooling}, which gives other vectors; remove that setting unless an index needs those vectors"
        )
    prompts = read_prompts(folder)
    revision = _compute_revision(folder, prompts, overrides)
    made_by = _describe_versions()
    needs_float32 = folder.family in FLOAT32_FAMILIES
    found = entries.find_entry(cache, revision, made_by)
    if found is None:
        check(needs_float32)
        report(f"converting {path}; the result stays in {cache}")
        try:
            with OPENVINO_LOCK:
                found = entries.store_entry(
                    cache,
                    revision,
                    made_by,
                    lambda into: _convert_model(folder, into, report, overrides.precision == "int8"),
                )
        except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError for a full disk, too
            raise ModelError(f"could not write the converted model to {cache}: {summarize_error(error)}") from None
    facts, entry = found.facts, entries.get_entry_folder(cache, revision)
    return PreparedModel(
        revision=revision,
        model_path=entry / entries.MODEL,
        tokenizer_path=entry / facts.tokenizer,
        dimension=facts.dimension,
        max_tokens=folder.max_tokens,
        normalize=folder.modules.is_normalized,
        vocabulary_size=facts.vocabulary_size,
        pad_id=facts.pad_id,
        lower_case=folder.lower_case,
        prompts=prompts,
        matryoshka=read_matryoshka(path, folder.config),
        truncates=overrides.truncate is True,
        needs_float32=needs_float32,
        use=found.use,
    )


def _read_supported_folder(path: Path, overrides: Overrides) -> ModelFolder:
    """Return the settings of a folder; of its graph if Vecmill cannot build its family. Raise `ModelError`."""
    folder = read_folder(path, overrides)
    if folder.kind != "huggingface" or folder.family in FAMILIES:
        return folder
    if (graph := find_graph_file(folder.base)) is not None:
        file = graph.relative_to(folder.base).as_posix()
        return read_folder(path, msgspec.structs.replace(overrides, file=file))
    raise ModelError(
        f"{folder.config_path} has the model_type {reprlib.repr(folder.family)}, but Vecmill builds only "
        f"{', '.join(FAMILIES)}; {EXPORT}"
    )


def _compute_revision(folder: ModelFolder, prompts: Prompts, overrides: Overrides) -> str:
    """Return a hash of everything that determines the vectors of a plain request.

    A CPU with SHA instructions hashes 90 MB of weights in 0.06 s. Raise `ModelError` if a file cannot be read.
    """
    config = {key: value for key, value in sorted(folder.config.items()) if key not in _IRRELEVANT_FIELDS}
    settings = [CONVERTER, PRECISION, folder.kind, folder.family, folder.modules, folder.lower_case, folder.max_tokens]
    settings += [config, prompts.texts.get(prompts.default, ""), folder.repool, overrides.vector_properties]
    if overrides.precision == "int8":
        settings.append((overrides.precision, INT8_GROUP))
    # Without paths, because a model that moves keeps its revision.
    digest = hashlib.sha256(msgspec.json.encode(settings, enc_hook=lambda path: ""))
    for path in folder.list_files():
        try:
            digest.update(bytes.fromhex(entries.hash_file(path)))
        except OSError as error:
            raise ModelError(f"could not read {path}: {error}") from None
    return digest.hexdigest()[:32]


def _describe_versions() -> str:
    """Return the versions of everything that writes the files of a conversion."""
    names = ("openvino", "openvino-tokenizers", "tokenizers")
    return ", ".join([f"converter {CONVERTER}", *(f"{name} {importlib.metadata.version(name)}" for name in names)])


def build_states(folder: ModelFolder, weights: "Weights", layout: "PaddedLayout") -> Any:
    """Return the last hidden states, as the module of the folder's family builds them.

    Raise `ModelError` if config.json and the weights do not fit.
    """
    states = importlib.import_module(FAMILIES[folder.family]).build_states(folder, weights, layout)
    weights.check_use()
    return states


def _convert_model(folder: ModelFolder, into: Path, report: Report, to_int8: bool) -> entries.Facts:
    """Write the IR of the model, with weights in int8 or as they are, and the tokenizer.

    Raise `ModelError` if the folder's files do not fit.
    """
    import openvino as ov

    from workers.models import head, static
    from workers.models.layout import PaddedLayout
    from workers.models.packed_layout import PackedLayout
    from workers.models.precision import WeightFormat, compress_weights
    from workers.models.tokenizer_files import write_tokenizer
    from workers.models.weights import Weights

    if folder.is_imported:
        from workers.models import imported

        report("  reading the graph")
        model = imported.build_model(folder.weights[0], folder.modules, repool=folder.repool)
        vocabulary_size = imported.find_vocabulary_size(model) or read_count(
            folder.config_path, folder.config, "vocab_size"
        )
    else:
        report("  building the OpenVINO model")
        weights, layout = Weights(folder.base), PaddedLayout()
        if folder.kind == "static":
            values, vocabulary_size = static.build_vectors(folder, weights, layout)
        else:
            layout = PackedLayout()
            vocabulary_size = read_count(folder.config_path, folder.config, "vocab_size")
            values = build_states(folder, weights, layout)
        model = head.make_model(values, layout, folder.modules, folder.family)
    if to_int8:
        report("  rounding the weights to int8")
        if not compress_weights(model, WeightFormat(name="int8")):
            report("warning: the model has no float weights to round: it may be quantized already")
    ov.save_model(model, into / entries.MODEL, compress_to_fp16=False)
    report("  converting the tokenizer")
    tokenizer = write_tokenizer(folder, vocabulary_size, into)
    return entries.Facts(
        dimension=model.output(0).get_partial_shape()[1].get_length(),
        vocabulary_size=vocabulary_size,
        pad_id=read_count(folder.config_path, folder.config, "pad_token_id", 0, vocabulary_size - 1, 0),
        tokenizer=tokenizer.name,
        made_by="",
    )


def print_progress(text: str) -> None:
    """Print a line of progress to the standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command. Exit with status 2 and one sentence if the model cannot be converted."""
    parser = FlagParser(prog="python -m workers.models.prepare", description="Convert a model folder.")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder for converted models")
    options = parser.parse_args()
    try:
        prepared = prepare_model(options.model, options.cache, print_progress)
    except ModelError as error:
        exit_refused("", error)
    print(prepared.model_path.parent)


if __name__ == "__main__":
    main()
