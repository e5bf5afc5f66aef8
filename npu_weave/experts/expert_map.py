"""The expert map of one MoE layer: which row stands for base expert j under slot s."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class ExpertMap:
    """``table[slot, j]``: row of the weight tensor that serves base expert `j` for tokens of `slot`.

    The table is int32 ``[slots + 1, num_experts]`` (paper section 4.3, with slot 0 for the base model instead of
    -1, so that the lookup has no branch). Line 0 is `base`, the base experts' own rows, and never changes. The tensor
    keeps its address for the life of the engine, so a captured graph may read it.

    Args:
        base: int32 ``[num_experts]`` on the host, the row of every base expert.
    """

    def __init__(self, slots: int, base: torch.Tensor, device: torch.device) -> None:
        self.slots = slots
        self.num_experts = len(base)
        self.base = base
        self.table = base.repeat(slots + 1, 1).to(device)
        self._published: dict[int, frozenset[int]] = {}

    def publish(self, slot: int, rows: Mapping[int, int]) -> None:
        """Point `slot` at `rows` (base expert -> row); other experts stay the base model's. Mutates `table`."""
        line = self.base.clone()
        for expert, row in rows.items():
            line[expert] = row
        self.table[slot].copy_(line)
        self._published[slot] = frozenset(rows)

    def withdraw(self, slot: int) -> None:
        """Point `slot` back at the base model. Mutates `table`."""
        self.table[slot].copy_(self.base)
        self._published.pop(slot, None)

    def rows_of(self, slot: int) -> dict[int, int]:
        """The experts of `slot`, ascending: base expert -> row, be it the base expert's own. Read off the table."""
        line = self.table[slot].cpu()
        changed = (line != self.base).nonzero().flatten().tolist()
        return {expert: int(line[expert]) for expert in sorted(self._published.get(slot, frozenset()).union(changed))}
