"""Imported as a whole: a use of anything else is an AttributeError."""

from __future__ import annotations

from torchvision.transforms import InterpolationMode

__all__ = ["InterpolationMode"]
