"""The HTTP side of Vecmill."""

__version__ = "0.1.0"
