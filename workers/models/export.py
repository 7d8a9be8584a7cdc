"""Export of a model to a folder that Vecmill and OVMS serve: OpenVINO IR, tokenizer IR, graph.pbtxt and settings.

The IR returns the last hidden states, because OVMS pools and normalizes itself, as graph.pbtxt says.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place
from broker.shared.version import VERSION
from workers.models import ovms_files
from workers.models.folder import ModelFolder, read_folder
from workers.models.json_files import REMEDY, ModelError, is_present, read_json, summarize_error
from workers.models.modules import Dense, LayerNorm
from workers.models.prepare import FAMILIES, Report, build_states

MODEL, TOKENIZER = "openvino_model.xml", "openvino_tokenizer.xml"
#: OVMS's names of the pooling modes that OVMS has.
POOLING = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
#: Files next to the weights that are copied: settings, tokenizers and licenses.
_COPIED = (
    "config*.json",
    "modules.json",
    "sentence_*_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
)


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to export, and where."""

    source: Path
    #: Name of the model in config.json, and path of its folder in the repository.
    name: str
    repository: Path
    config_path: Path
    weight_format: str = "int8"
    extra_quantization_params: str = ""
    #: CLS, MEAN or LAST; "": as the model declares.
    pooling: str = ""
    normalize: bool = True
    truncate: bool = False
    target_device: str = "CPU"
    num_streams: int = 1
    #: Folder for OpenVINO's compiled models; "": none.
    ov_cache_dir: str = ""
    overwrite: bool = False
    #: Whether `pooling` may contradict the model.
    force: bool = False


def export_model(options: ExportOptions, report: Report) -> Path:
    """Return the folder of the exported model. Raise `ModelError` if the model cannot be exported.

    `report` gets a line for each step. A folder that exists is not exported again unless `overwrite` is set, but its
    graph.pbtxt and its entry in config.json are written.
    """
    target = options.repository / options.name
    if not options.name or Path(options.name).is_absolute() or ".." in Path(options.name).parts:
        raise ModelError(f"--model_name is {options.name!r}, but must be a name such as BAAI/bge-small-en-v1.5")
    folder = read_folder(options.source)
    graph = _choose_graph(options, folder, report)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not options.overwrite:
            report(f"{target} exists, so the model is not exported again; add --overwrite_models to replace it")
        else:
            with make_scratch_folder(target.parent) as scratch:
                made = scratch / target.name
                made.mkdir()
                _write_model(folder, made, options, report)
                move_into_place(made, target)
        (target / "graph.pbtxt").write_text(ovms_files.format_graph(graph))
        ovms_files.add_entry(options.config_path, options.name, target)
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError for a full disk, too
        raise ModelError(f"could not write {target}: {summarize_error(error)}") from None
    report(f"{options.config_path} serves {options.name} from {target}")
    return target


def _choose_graph(options: ExportOptions, folder: ModelFolder, report: Report) -> ovms_files.GraphOptions:
    """Return the options of graph.pbtxt. Raise `ModelError` if OVMS cannot pool as the model does."""
    declared = [POOLING.get(mode, mode) for mode in folder.modules.pooling]
    if options.pooling and options.pooling not in declared and not options.force:
        raise ModelError(
            f"--pooling is {options.pooling}, but {folder.path} declares {' and '.join(declared)}; leave --pooling "
            "out, or add --force"
        )
    pooling = options.pooling or declared[0]
    if (len(declared) > 1 and not options.pooling) or pooling not in POOLING.values():
        raise ModelError(
            f"{folder.path} has the pooling {' and '.join(declared)}, but OVMS has only {', '.join(POOLING.values())}; "
            "serve the folder itself with scripts/serve --model, which needs no export"
        )
    if any(isinstance(step, Dense | LayerNorm) for step in folder.modules.steps):
        report(f"{folder.path} has modules after the pooling: Vecmill applies them, but OVMS ignores them")
    if options.normalize and not folder.modules.is_normalized:
        report(f"{folder.path} does not normalize its vectors, but the export does; --skip_normalize keeps lengths")
    config = {"NUM_STREAMS": str(options.num_streams)}
    if options.ov_cache_dir:
        config["CACHE_DIR"] = options.ov_cache_dir
    return ovms_files.GraphOptions(
        pooling=pooling,
        normalize=options.normalize,
        truncate=options.truncate,
        target_device=options.target_device,
        plugin_config=config,
    )


def _write_model(folder: ModelFolder, into: Path, options: ExportOptions, report: Report) -> None:
    """Write everything but graph.pbtxt. Raise `ModelError` if the folder's files do not fit."""
    import openvino as ov

    from workers.models.layout import PaddedLayout
    from workers.models.precision import compress_weights, read_format
    from workers.models.weights import Weights

    wanted = read_format(options.weight_format, options.extra_quantization_params)
    if folder.kind != "huggingface" or folder.family not in FAMILIES:
        raise ModelError(f"{folder.config_path} has the model_type {folder.family}, which Vecmill cannot export")
    report(f"building the OpenVINO model of {folder.path} with {wanted.name} weights")
    weights, layout = Weights(folder.base), PaddedLayout()
    states = build_states(folder, weights, layout)
    states.output(0).set_names({"last_hidden_state"})
    model = ov.Model([states], layout.inputs, folder.family)
    compress_weights(model, wanted)
    model.set_rt_info(VERSION, ["vecmill", "version"])
    model.set_rt_info(wanted.name, ["vecmill", "weight_format"])
    ov.save_model(model, into / MODEL, compress_to_fp16=False)
    report("converting the tokenizer")
    ov.save_model(_convert_tokenizer(folder), into / TOKENIZER, compress_to_fp16=False)
    _copy_files(folder, into)


def _convert_tokenizer(folder: ModelFolder) -> Any:
    """Return the tokenizer as OVMS expects it: texts to padded `input_ids` and `attention_mask`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino_tokenizers
        from transformers import PreTrainedTokenizerFast

        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder.base, local_files_only=True)
            return openvino_tokenizers.convert_tokenizer(tokenizer)
        except Exception as error:  # the libraries raise many kinds, all because of this file
            raise ModelError(
                f"could not convert {folder.tokenizer_path}: {summarize_error(error)}; {REMEDY}"
            ) from error


def _copy_files(folder: ModelFolder, into: Path) -> None:
    """Copy what describes the model: settings, prompts, the tokenizer, modules after the transformer, the license."""
    for source in dict.fromkeys((folder.path, folder.base)):
        _copy_patterns(source, into, _COPIED)
    listed = folder.path / "modules.json"
    if not is_present(listed):
        return
    entries = read_json(listed)
    if entries[0]["path"]:
        # The files of the transformer are in the root now, where OVMS needs them.
        entries[0]["path"] = ""
        (into / listed.name).write_text(json.dumps(entries, indent=2))
    for entry in entries[1:]:
        if entry["path"] and (folder.path / entry["path"]).is_dir():
            (into / entry["path"]).mkdir(parents=True, exist_ok=True)
            _copy_patterns(folder.path / entry["path"], into / entry["path"], ("config.json", "*.safetensors"))


def _copy_patterns(source: Path, into: Path, patterns: Iterable[str]) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, into / path.name)
