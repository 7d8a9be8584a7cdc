"""Finding, reading and converting model folders. One module for each family of architectures.

The public names are loaded on first use: importing the package costs nothing, and `python -m workers.models.prepare`
does not find its own module imported already.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.models.default import fetch_default_model
    from workers.models.folder import ModelError
    from workers.models.prepare import PreparedModel, prepare_model

__all__ = ["ModelError", "PreparedModel", "fetch_default_model", "prepare_model"]

_HOMES = {
    "ModelError": "folder",
    "PreparedModel": "prepare",
    "fetch_default_model": "default",
    "prepare_model": "prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
