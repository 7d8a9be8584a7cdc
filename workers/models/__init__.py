"""Finding, reading and converting model folders. One module for each family of architectures."""

from workers.models.default import fetch_default_model
from workers.models.folder import ModelError
from workers.models.prepare import PreparedModel, prepare_model

__all__ = ["ModelError", "PreparedModel", "fetch_default_model", "prepare_model"]
