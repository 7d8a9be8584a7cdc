"""Models of the Hugging Face hub, fetched into the cache with the library huggingface_hub.

`<cache>/hub/OWNER/NAME/<commit>/` has the files of a commit. `revisions/` next to it notes the commit that each branch
last had, and the commits that are complete. An interrupted download continues where it stopped. The library reads
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the proxy from the environment.

Only settings, tokenizers and the weights that Vecmill reads are fetched, and neither code nor pickles.
"""

import difflib
import fnmatch
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from broker.shared.version import VERSION
from workers.models.json_files import ModelError, is_present, read_json, summarize_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Files that describe a model, in its root and in the folders of modules.
SETTINGS = (
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
#: Settings of weights that are fetched with them.
_WEIGHT_SETTINGS = ("model.safetensors.index.json", "openvino_config.json", "graph.pbtxt")
#: Weights, best kind first. The files of the first kind that a model has are fetched.
_WEIGHTS = (
    ("model.safetensors", "model-*-of-*.safetensors"),
    ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_tokenizer.bin"),
    ("openvino/openvino_model.xml", "openvino/openvino_model.bin"),
    ("onnx/model.onnx", "onnx/model.onnx_data"),
    ("model.onnx", "model.onnx_data"),
)
#: OWNER/NAME, or OWNER/NAME@REVISION.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Branch if no revision is given.
_MAIN = "main"
#: Seconds to wait for an answer about a model.
_TIMEOUT_S = 10.0

Report = Callable[[str], None]
T = TypeVar("T")


class _UnreachableError(Exception):
    """The hub cannot be used now. The text is the first part of a sentence."""


class _OfflineError(_UnreachableError):
    """The environment forbids the use of the hub."""


def is_hub_name(text: str) -> bool:
    """Return whether a model is given by its name on the hub. What exists as a folder is not."""
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


def find_name(folder: Path) -> str:
    """Return OWNER/NAME if a folder is named like a model on the hub or was fetched from there, or ""."""
    if is_hub_name(str(folder)):
        return str(folder).partition("@")[0]
    *_, hub, owner, name, commit = ["", "", "", *folder.resolve().parts]
    if not _COMMIT.fullmatch(commit):
        return ""
    if name == "snapshots":  # the cache of huggingface_hub
        return owner.removeprefix("models--").replace("--", "/", 1)
    return f"{owner}/{name}" if hub == "hub" else ""


def fetch_model(text: str, cache: Path, report: Report, *, weights: bool = True) -> Path:
    """Return the folder of a model by its name on the hub, fetched if the cache does not have the current commit.

    The commit of the last download is used if the hub cannot be reached. Without `weights`, only the settings and the
    tokenizer are fetched. `report` gets a line for each step. Raise `ModelError` if the model cannot be fetched.
    """
    name, _, revision = text.partition("@")
    store, revision = cache / "hub" / name, revision or _MAIN
    fetched = _find_fetched(store, revision)
    if fetched and _COMMIT.fullmatch(revision):
        return fetched
    try:
        commit, files = _call_hub(_list_files, name, revision)
        report(f"fetching {name} at commit {commit}; to keep this commit, set --model {name}@{commit}")
        _call_hub(_download, name, commit, [file for file in files if _is_setting(file)], store / commit)
        if not weights:
            return store / commit
        _fetch_weights(name, commit, files, store / commit)
        for note in (commit, revision):
            path = _get_note(store, note)
            path.parent.mkdir(exist_ok=True)
            path.write_text(commit)
        return store / commit
    except _UnreachableError as error:
        if fetched is None:
            remedy = "unset it" if isinstance(error, _OfflineError) else "check the network and HF_ENDPOINT"
            raise ModelError(f"{error}; {remedy}, or set --model to a folder") from None
        report(f"{error}; using commit {fetched.name}, which was fetched before")
        return fetched
    except OSError as error:
        raise ModelError(f"could not write {name} to {cache}: {summarize_error(error)}") from None


def _get_note(store: Path, revision: str) -> Path:
    """Return the file with the commit of a revision."""
    return store / "revisions" / urllib.parse.quote(revision, safe="")


def _find_fetched(store: Path, revision: str) -> Path | None:
    """Return the folder of the complete commit that a revision last had, or None."""
    try:
        folder = store / _get_note(store, revision).read_text()
    except OSError:
        return None
    return folder if _get_note(store, folder.name).is_file() and folder.is_dir() else None


def _list_files(name: str, revision: str) -> tuple[str, list[str]]:
    """Return the commit of a revision and its files."""
    info = _make_api().model_info(name, revision=revision, timeout=_TIMEOUT_S)
    return info.sha or "", [file.rfilename for file in info.siblings or ()]


def _fetch_weights(name: str, commit: str, files: list[str], folder: Path) -> None:
    """Fetch what is missing of a commit. Raise `ModelError` if the model has no weights that Vecmill reads."""
    weights = choose_weights(files, _read_module_folders(folder / "modules.json"))
    if not weights:
        found = [file for file in files if file.endswith((".bin", ".h5", ".gguf", ".msgpack", ".onnx", ".pt"))]
        raise ModelError(
            f"{name} has no model.safetensors on the hub, but only {' and '.join(found[:3]) or 'other files'}, which "
            "Vecmill does not read; choose a model with model.safetensors"
        )
    _call_hub(_download, name, commit, weights, folder)
    missing = [file for file in files if (_is_setting(file) or file in weights) and not (folder / file).is_file()]
    if missing:
        raise _UnreachableError(f"could not fetch {missing[0]} of {name} from the hub")


def _is_setting(file: str) -> bool:
    folder, _, name = file.rpartition("/")
    return (
        "/" not in folder
        and folder != ".."
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in (*SETTINGS, *_WEIGHT_SETTINGS))
    )


def _read_module_folders(path: Path) -> list[str]:
    """Return the folders of the modules, that of the transformer first. Raise `ModelError` if the file is damaged."""
    modules = read_json(path) if is_present(path) else []
    entries = modules if isinstance(modules, list) else []
    folders = [entry.get("path") if isinstance(entry, dict) else "" for entry in entries]
    return [folder if isinstance(folder, str) else "" for folder in folders] or [""]


def choose_weights(files: Iterable[str], folders: list[str]) -> list[str]:
    """Return the files of the weights of a model and its modules. `folders` are those of the modules."""
    names = sorted(files)
    chosen: list[str] = []
    for kind in _WEIGHTS:
        patterns = [f"{folders[0]}/{pattern}" if folders[0] else pattern for pattern in kind]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns[:2]):
            chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
            break
    modules = [f"{folder}/model.safetensors" for folder in folders[1:]]
    return chosen and chosen + [name for name in modules if name in names]


def _make_api() -> "HfApi":
    # The import takes 0.3 s, and most models are folders.
    from huggingface_hub import HfApi

    return HfApi(library_name="vecmill", library_version=VERSION)


def _download(name: str, commit: str, files: list[str], folder: Path) -> None:
    """Download the files of a commit that are missing, with a progress bar on a terminal."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    # Names are matched as patterns.
    patterns = [re.sub(r"([*?\[])", r"[\1]", file) for file in files]
    _make_api().snapshot_download(name, revision=commit, local_dir=folder, allow_patterns=patterns)


def _call_hub(call: Callable[..., T], name: str, *arguments: Any) -> T:
    """Return the result of a call of the library for a model.

    Raise `ModelError` if the hub refuses, `_UnreachableError` if there is no answer, `OSError` if a disk is full.
    """
    import httpx2
    from huggingface_hub import errors

    endpoint = _make_api().endpoint
    try:
        return call(name, *arguments)
    except errors.GatedRepoError:
        raise ModelError(
            f"{name} is gated; accept its conditions at {endpoint}/{name}, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.HFValidationError as error:
        raise ModelError(f"{name} is no name of a model on the hub: {summarize_error(error)}") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name} has no revision {arguments[0]} on {endpoint}; correct what follows @") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(_describe_unknown(name, endpoint)) from None
    except errors.OfflineModeIsEnabled:
        raise _OfflineError(f"could not fetch {name} because HF_HUB_OFFLINE is set") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelError(f"{endpoint} refused HF_TOKEN for {name} with status {status}; renew the token") from None
        raise _UnreachableError(f"could not fetch {name}, because {endpoint} answered with status {status}") from None
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _UnreachableError(f"could not fetch {name} from {endpoint} ({summarize_error(cause)})") from None


def _describe_unknown(name: str, endpoint: str) -> str:
    """Return an error for a model that the hub does not have, with the names of similar models."""
    import httpx2

    owner, _, title = name.partition("/")
    similar: list[str] = []
    try:
        similar += [model.id for model in _make_api().list_models(author=owner, limit=200)]
        similar += [model.id for model in _make_api().list_models(search=title, limit=200)]
    except (httpx2.HTTPError, OSError, ValueError):
        pass  # the names only help
    matches = difflib.get_close_matches(name, dict.fromkeys(similar), 3)
    remedy = f"did you mean {' or '.join(matches)}?" if matches else "check the name"
    return f"{endpoint} has no model {name}, or HF_TOKEN may not read it; {remedy}"
