"""Where the tokens of a step go in one layer: by the slot of each, to base or adapter rows."""

from __future__ import annotations

import torch

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)
from npu_weave.errors import IntegrityError
from npu_weave.experts.gating import Gating
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.token_slots import TokenSlots


class LayerRouting:
    """`Routing` of one layer, which it does not hold anything of but its expert map."""

    def __init__(self, layer: ExpertLayer, token_slots: TokenSlots) -> None:
        self._layer = layer
        self.token_slots = token_slots

    def slots(self, *, first: int = 0, of: int) -> torch.Tensor:
        """`Routing.slots`. No copy is made, so their address is in the buffer."""
        self._check(of)
        return self.token_slots.buffer[first:]

    def reroute(self, ids: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        """`Routing.reroute`.

        Raises:
            IntegrityError: TOKENS_MISALIGNED, without `slots`.
        """
        if slots is None:
            slots = self.slots(of=ids.shape[0])
        rows: torch.Tensor = torch.ops.npu_weave.reroute.default(ids, slots, self._layer.map.table)
        return rows

    def gate(
        self, logits: torch.Tensor, gating: Gating, slots: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Routing.gate`.

        Raises:
            IntegrityError: TOKENS_MISALIGNED, without `slots`.
        """
        if slots is None:
            slots = self.slots(of=logits.shape[0])
        return gating.gate(logits, slots, self._layer.map.table)

    def _check(self, tokens: int) -> None:
        if tokens < self.token_slots.used:
            raise IntegrityError(
                "TOKENS_MISALIGNED",
                self._layer.name,
                expected=f"at least {self.token_slots.used} tokens, those of the step",
                got=f"{tokens}",
                remedy="report this with the engine's settings: something split the step's tokens",
            )
