"""What expert weights need, by arithmetic: exact rows, whole pages, the paper's padding, merged models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npu_weave.adapters.geometry import MoEGeometry

ExpertSets = Mapping[int, tuple[int, ...]]
"""The experts an adapter tunes: model layer index to expert ids."""


@dataclass(frozen=True)
class Need:
    """Bytes for the experts of a base model and of some adapters.

    Attributes:
        experts: tuned experts, over all layers and adapters.
        exact_bytes: base and tuned experts alone.
        paged_bytes: whole pages under them, each weight tensor's rows packed one after the other from a page's start.
        padded_bytes: ``M + N * e_max`` rows in every layer, N adapters: a plain tensor with a fixed grid.
        merged_bytes: one copy of all experts for each adapter; for no adapter, the base model's.
    """

    experts: int
    exact_bytes: int
    paged_bytes: int
    padded_bytes: int
    merged_bytes: int

    @property
    def fragmentation(self) -> float:
        """Padded over exact: ``F_mem`` of the ExpertWeave paper (arXiv 2508.17624)."""
        return self.padded_bytes / self.exact_bytes


def row_shapes(geometry: MoEGeometry) -> dict[str, tuple[int, int]]:
    """Shape of one expert in each weight tensor: gate and up stacked ``[2 I, H]``, down ``[H, I]``."""
    width, hidden = geometry.moe_intermediate_size, geometry.hidden_size
    return {"w13_weight": (2 * width, hidden), "w2_weight": (hidden, width)}


def need(
    geometry: MoEGeometry, layers: Sequence[int], adapters: Sequence[ExpertSets], e_max: int, page_bytes: int
) -> Need:
    """What `adapters` need beside the base model, in the MoE layers `layers` (model layer indices).

    Args:
        geometry: of the base model.
        layers: the layers to count.
        adapters: those loaded.
        e_max: rows the padded tensor keeps for each adapter in each layer.
        page_bytes: bytes of a page.
    """
    base = geometry.num_experts
    rows = {layer: base + sum(len(sets.get(layer, ())) for sets in adapters) for layer in layers}
    row_bytes = [out * inner * geometry.dtype.itemsize for out, inner in row_shapes(geometry).values()]
    pages = sum(-(-count * nbytes // page_bytes) for count in rows.values() for nbytes in row_bytes)
    return Need(
        experts=sum(rows.values()) - base * len(layers),
        exact_bytes=sum(rows.values()) * geometry.expert_nbytes,
        paged_bytes=pages * page_bytes,
        padded_bytes=len(layers) * (base + len(adapters) * e_max) * geometry.expert_nbytes,
        merged_bytes=len(layers) * base * geometry.expert_nbytes * max(1, len(adapters)),
    )
