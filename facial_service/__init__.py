"""Labelled face regions from photos, without a server; see docs/python.md.

Example:
    >>> from facial_service import find_regions
    >>> find_regions("examples/astronaut.png")["nose"].name
    'nose'
"""

from app import __version__
from app.api import ArgumentError, FaceRegions, InputError, find_regions

__all__ = ["ArgumentError", "FaceRegions", "InputError", "__version__", "find_regions"]
