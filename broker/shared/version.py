"""The version of Vecmill, which all three programs share."""

VERSION = "0.1.0"
