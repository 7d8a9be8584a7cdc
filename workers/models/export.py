"""Export of a model to a folder that Vecmill and OVMS serve, and to OVMS's config.json."""

import shlex
import shutil
from pathlib import Path

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place
from workers.models import ovms_files
from workers.models.default import find_folder
from workers.models.export_files import (
    copy_settings,
    hash_source,
    read_export_info,
    write_graph,
    write_padded_tokenizer,
)
from workers.models.folder import ModelFolder, read_folder
from workers.models.hub import fetch_model, is_hub_name
from workers.models.json_files import ModelError, summarize_error
from workers.models.modules import Dense, LayerNorm
from workers.models.optimum import run_optimum
from workers.models.prepare import Report
from workers.models.sources import choose_model_name

#: OVMS's names of the pooling modes that OVMS has.
POOLING = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to export, how, and where to."""

    #: Model folder, or name of a model on the Hugging Face hub.
    source: str
    #: Name of the model in config.json, and path of its folder in the repository; "": as Vecmill would serve it.
    name: str = ""
    repository: Path
    config_path: Path
    #: fp32, fp16, int8 or int4.
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
    #: Whether optimum-cli may export what Vecmill cannot, and whether it may run code of the model.
    allow_optimum: bool = False
    trust_remote_code: bool = False


def export_model(options: ExportOptions, cache: Path, report: Report) -> Path:
    """Return the folder of the exported model. Raise `ModelError` if the model cannot be exported.

    `report` gets a line for each step. A folder that exists is not exported again unless `overwrite` is set, but its
    graph.pbtxt and its entry in config.json are written.
    """
    folder = _read_source(options, cache, report)
    name = options.name or choose_model_name(folder.path if folder else Path(options.source))
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
        raise ModelError(
            f"the name {name!r} does not fit into {options.repository}; set --model_name, such as BAAI/bge-m3"
        )
    target = options.repository / name
    graph = _choose_graph(options, folder, report) if folder else None
    ovms_files.read_config(options.config_path)
    try:
        if target.exists() and not options.overwrite:
            _check_existing(target, folder, options.weight_format)
            report(f"{target} exists, so the model is not exported again; add --overwrite_models to replace it")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            with make_scratch_folder(target.parent) as scratch:
                made = scratch / target.name
                _write_folder(options, folder, made, cache, report)
                move_into_place(made, target)
        graph = graph or _choose_graph(options, read_folder(target), report)
        (target / "graph.pbtxt").write_text(ovms_files.format_graph(graph))
        ovms_files.add_entry(options.config_path, name, target)
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError for a full disk, too
        raise ModelError(f"could not write {target}: {summarize_error(error)}") from None
    report(f"{options.config_path} has {name} in {target}")
    return target


def _check_existing(target: Path, folder: ModelFolder | None, weight_format: str) -> None:
    """Raise `ModelError` if an export was made from another source, or with another format of weights."""
    info = read_export_info(target)
    if folder is not None:
        is_same = hash_source(folder) == info["source"] if "source" in info else _is_alike(folder, read_folder(target))
        if not is_same:
            raise ModelError(
                f"{target} was not made from {folder.path}; add --overwrite_models to replace it, or set --model_name"
            )
    if (found := info.get("weight_format", weight_format)) != weight_format:
        raise ModelError(
            f"{target} has {found} weights, but --weight_format is {weight_format}; "
            "add --overwrite_models to replace the folder"
        )


def _is_alike(source: ModelFolder, made: ModelFolder) -> bool:
    return source.config == made.config and source.modules.pooling == made.modules.pooling


def _read_source(options: ExportOptions, cache: Path, report: Report) -> ModelFolder | None:
    """Return the source, or None if only optimum-cli may be able to read it."""
    try:
        return read_folder(find_folder(options.source, cache, report))
    except ModelError as error:
        if not options.allow_optimum:
            raise
        report(f"{error}; exporting with optimum-cli")
        return None


def _choose_graph(options: ExportOptions, folder: ModelFolder, report: Report) -> ovms_files.GraphOptions:
    """Return the options of graph.pbtxt. Raise `ModelError` if OVMS cannot pool as the model does."""
    if folder.kind == "static":
        raise ModelError(
            f"{folder.path} is a table of tokens, which OVMS cannot serve; serve it with scripts/serve --model"
        )
    declared = [POOLING.get(mode, mode) for mode in folder.modules.pooling]
    if options.pooling and declared != [options.pooling] and not options.force:
        raise ModelError(
            f"--pooling is {options.pooling}, but {folder.path} declares {' and '.join(declared)}; leave --pooling "
            "out, or add --force"
        )
    pooling = options.pooling or "+".join(declared)
    if pooling not in POOLING.values():
        raise ModelError(
            f"{folder.path} has the pooling {pooling}, but OVMS has only {', '.join(POOLING.values())}; "
            "serve it with scripts/serve --model"
        )
    if any(isinstance(step, Dense | LayerNorm) for step in folder.modules.steps):
        report(f"warning: {folder.path} has Dense or LayerNorm modules, which Vecmill applies and OVMS ignores")
    if options.normalize and not folder.modules.is_normalized:
        report(
            f"{folder.path} does not normalize its vectors, but the export does; add --skip_normalize to keep lengths"
        )
    properties = {"NUM_STREAMS": str(options.num_streams)}
    if options.ov_cache_dir:
        properties["CACHE_DIR"] = options.ov_cache_dir
    return ovms_files.GraphOptions(
        pooling=pooling,
        normalize=options.normalize,
        truncate=options.truncate,
        target_device=options.target_device,
        plugin_config=properties,
    )


def _write_folder(options: ExportOptions, folder: ModelFolder | None, made: Path, cache: Path, report: Report) -> None:
    """Write everything but graph.pbtxt into a new folder. Raise `ModelError` if the model cannot be exported."""
    try:
        made.mkdir()
        if folder is not None:
            # The import takes a second, which the first errors do not need.
            from workers.models.precision import read_format

            wanted = read_format(options.weight_format, options.extra_quantization_params)
            report(f"building the OpenVINO model of {folder.path} with {wanted.name} weights")
            write_graph(folder, made, wanted)
            copy_settings(folder.path, made)
    except ModelError as error:
        if not options.allow_optimum:
            raise
        report(f"{error}; exporting with optimum-cli")
        shutil.rmtree(made)
        folder = None
    if folder is None:
        _run_optimum(options, made, cache, report)
    report("converting the tokenizer")
    write_padded_tokenizer(read_folder(made), made)


def _run_optimum(options: ExportOptions, made: Path, cache: Path, report: Report) -> None:
    """Export with optimum-cli. Raise `ModelError` if it fails."""
    arguments = ["--model", options.source, "--weight-format", options.weight_format]
    arguments += shlex.split(options.extra_quantization_params)
    arguments += ["--trust-remote-code"] if options.trust_remote_code else []
    run_optimum(arguments, made, cache, report)
    is_name = is_hub_name(options.source)
    copy_settings(fetch_model(options.source, cache, report, weights=False) if is_name else Path(options.source), made)
