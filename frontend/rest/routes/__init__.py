"""The paths, one module for each API that they belong to."""
