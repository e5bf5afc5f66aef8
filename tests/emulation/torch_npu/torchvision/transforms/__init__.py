"""Transforms of images."""

from __future__ import annotations

import enum


class InterpolationMode(enum.Enum):
    """How to resize; a table in transformers is made of them."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"
