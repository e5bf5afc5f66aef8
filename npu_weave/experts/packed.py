"""An adapter's experts in kernel layout, ready to be copied into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from blake3 import blake3


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The experts one adapter tunes in one MoE layer.

    Attributes:
        experts: base expert ids, ascending, on whichever rank they lie.
        weights: for each expert parameter a tensor ``[len(held), ...]`` in kernel layout, on the host; empty when
            none is held.
        digests: for each expert the digest of what it was packed from, before any slicing for a rank
            (`adapters.digest.AdapterDigests`). Experts of one layer with equal digests must be packed to equal bytes.
            None: the packed bytes are hashed instead; slices can be equal on one rank and not on another, so ranks
            that must decide alike need digests.
        held: those of `experts` whose weights are here; None: all. Needs digests.
    """

    experts: tuple[int, ...]
    weights: Mapping[str, torch.Tensor]
    digests: tuple[str, ...] | None = None
    held: tuple[int, ...] | None = None

    @cached_property
    def position_of(self) -> Mapping[int, int]:
        """Expert held here -> its place in `weights`."""
        held = self.experts if self.held is None else self.held
        return {expert: position for position, expert in enumerate(held)}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    @cached_property
    def content_digests(self) -> tuple[str, ...]:
        """`digests`, or those of the packed bytes; every byte is hashed at the first use then."""
        if self.digests is not None:
            if len(self.digests) != len(self.experts):
                raise ValueError(f"{len(self.digests)} digests for {len(self.experts)} experts")
            return self.digests
        return tuple(self._digest(position) for position in range(len(self.experts)))

    def _digest(self, position: int) -> str:
        digest = blake3(b"npu-weave packed expert 1\n", max_threads=blake3.AUTO)
        for name in sorted(self.weights):
            row = self.weights[name][position].contiguous()
            digest.update(f"{name} {row.dtype} {list(row.shape)}\n".encode())
            digest.update(row.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


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
