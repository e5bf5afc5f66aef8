"""Transforms as functions."""

from __future__ import annotations

from torchvision import refusing

pil_to_tensor = refusing("transforms.functional.pil_to_tensor")
