"""An adapter's experts in kernel layout, ready to be copied into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedLayer:
    """The experts one adapter tunes in one MoE layer.

    Attributes:
        experts: base expert ids, ascending.
        weights: for each expert parameter a tensor ``[len(experts), ...]`` in kernel layout, on the host.
    """

    experts: tuple[int, ...]
    weights: Mapping[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for weight in self.weights.values())


@dataclass(frozen=True)
class PackedAdapter:
    """One adapter revision in kernel layout: layer index -> `PackedLayer`. Layers without experts are absent."""

    name: str
    digest: str
    layers: Mapping[int, PackedLayer]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers.values())

    def experts_in(self, layer: int) -> int:
        """Number of experts tuned in `layer`."""
        packed = self.layers.get(layer)
        return len(packed.experts) if packed else 0
