"""Files of an exported model, in the layout of OVMS 2025.2 and later, which is that of optimum-cli.

`openvino_model.xml` returns the last hidden states, because OVMS pools and normalizes itself, as graph.pbtxt specifies.
Vecmill reads the modules of sentence-transformers besides.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from broker.shared.version import VERSION
from workers.models.cache import hash_file
from workers.models.folder import ModelFolder
from workers.models.hub import SETTINGS
from workers.models.json_files import MAX_COUNT, ModelError, read_count, read_json, read_object, summarize_error
from workers.models.library import Job, convert_tokenizer
from workers.models.modules import read_modules
from workers.models.prepare import FAMILIES, build_states
from workers.models.tokenizer_settings import NAMES, get_content, read_settings

if TYPE_CHECKING:
    from workers.models.precision import WeightFormat

MODEL, TOKENIZER = "openvino_model.xml", "openvino_tokenizer.xml"


def write_graph(folder: ModelFolder, into: Path, wanted: "WeightFormat") -> None:
    """Write the IR of a folder's model without its modules. Raise `ModelError` if Vecmill cannot build the model."""
    import openvino as ov

    from workers.models.layout import PaddedLayout
    from workers.models.precision import compress_weights
    from workers.models.weights import Weights

    if folder.is_imported:
        model = ov.Core().read_model(folder.weights[0])
    elif folder.family not in FAMILIES:
        raise ModelError(
            f"{folder.config_path} has the model_type {folder.family}, but Vecmill builds only {', '.join(FAMILIES)}; "
            "add --allow_optimum to export with optimum-cli"
        )
    else:
        # The constants of the model are in the files that `weights` maps.
        weights, layout = Weights(folder.base), PaddedLayout()
        states = build_states(folder, weights, layout)
        states.output(0).set_names({"last_hidden_state"})
        model = ov.Model([states], layout.inputs, folder.family)
    compress_weights(model, wanted)
    model.set_rt_info(VERSION, ["vecmill", "version"])
    model.set_rt_info(wanted.name, ["vecmill", "weight_format"])
    model.set_rt_info(hash_source(folder), ["vecmill", "source"])
    ov.save_model(model, into / MODEL, compress_to_fp16=False)


def hash_source(folder: ModelFolder) -> str:
    """Return a hash of a folder's weights and pooling, which shows whether an export was made from the folder."""
    parts = [*map(hash_file, folder.weights), *folder.modules.pooling]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_export_info(folder: Path) -> dict[str, str]:
    """Return what `write_graph` noted in an export: `source`, `weight_format` and `version`; {} for other folders.

    Raise `ModelError` if the file of the model is damaged.
    """
    info: dict[str, str] = {}
    path = folder / MODEL
    try:
        for _, element in ElementTree.iterparse(path) if path.is_file() else ():
            if element.tag == "vecmill":
                info = {child.tag: child.get("value", "") for child in element}
            elif element.tag in ("layer", "edge"):
                element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {summarize_error(error)}; add --overwrite_models to replace it") from None
    return info


def write_padded_tokenizer(folder: ModelFolder, into: Path) -> None:
    """Write the IR of a folder's tokenizer: texts to padded `input_ids` and `attention_mask`. Raise `ModelError`.

    Only OVMS reads the IR: Vecmill reads tokenizer.json, which gives the model's own ids for every text.
    """
    import openvino as ov

    from workers.models.tokenizers import convert_padded

    source = folder.tokenizer_path
    if source.suffix == ".xml":
        for path in (source, source.with_suffix(".bin")):
            shutil.copyfile(path, (into / TOKENIZER).with_suffix(path.suffix))
        return
    vocabulary_size = read_count(folder.config_path, folder.config, "vocab_size", default=MAX_COUNT)
    settings = read_settings(source.parent)
    special = {name: content for name in NAMES if (content := get_content(settings.get(name))) is not None}
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / source.name
        job = Job(str(source.parent), str(written), vocabulary_size, folder.max_tokens, folder.has_special_tokens)
        convert_tokenizer(job)
        converted = convert_padded(source, read_object(written), **special)
    ov.save_model(converted, into / TOKENIZER, compress_to_fp16=False)


def copy_settings(source: Path, into: Path) -> None:
    """Copy what describes a model: settings, prompts, the tokenizer, modules after the transformer, the license.

    Raise `ModelError` if modules.json is damaged.
    """
    modules = read_modules(source)
    for folder in dict.fromkeys((source, modules.base if modules else source)):
        _copy_files(folder, into, SETTINGS)
    if modules is None:
        return
    entries = read_json(source / "modules.json")
    if entries[0]["path"]:
        # The files of the transformer are in the root now, where OVMS needs them.
        entries[0]["path"] = ""
        (into / "modules.json").write_text(json.dumps(entries, indent=2))
    for entry in entries[1:]:
        if entry["path"] and (source / entry["path"]).is_dir():
            (into / entry["path"]).mkdir(parents=True, exist_ok=True)
            _copy_files(source / entry["path"], into / entry["path"], ("config.json", "*.safetensors"))


def _copy_files(source: Path, into: Path, patterns: Iterable[str]) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, into / path.name)
