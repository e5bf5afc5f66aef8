"""Where the tokens of a step go in one layer: by the slot of each, to base or adapter rows."""

from __future__ import annotations

import torch

import weave_ops
from npu_weave.errors import IntegrityError
from npu_weave.experts.gating import Gating
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.token_slots import TokenSlots


class LayerRouting:
    """`Routing` of one layer, which it does not hold anything of but its expert map."""

    def __init__(self, layer: ExpertLayer, token_slots: TokenSlots) -> None:
        self._layer = layer
        self.token_slots = token_slots
        # both stay where they are for good
        self._buffer, self._table = token_slots.buffer, layer.map.table
        on_cpu = self._table.device.type == "cpu"
        self._reroute = weave_ops.reroute_on_cpu if on_cpu else torch.ops.npu_weave.reroute.default

    def slots(self, *, first: int = 0, of: int) -> torch.Tensor:
        """`Routing.slots`. No copy is made, so their address is in the buffer."""
        if of < self.token_slots.used:
            raise self._misaligned(of)
        return self._buffer[first:] if first else self._buffer

    def reroute(self, ids: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        """`Routing.reroute`.

        Raises:
            IntegrityError: TOKENS_MISALIGNED, without `slots`.
        """
        if slots is None:  # as `slots` does, without a call: this is in every layer
            slots = self._buffer
            if ids.size(0) < self.token_slots.used:
                raise self._misaligned(ids.size(0))
        rows: torch.Tensor = self._reroute(ids, slots, self._table)
        return rows

    def gate(
        self, logits: torch.Tensor, gating: Gating, slots: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Routing.gate`.

        Raises:
            IntegrityError: TOKENS_MISALIGNED, without `slots`.
        """
        if slots is None:
            slots = self.slots(of=logits.size(0))
        return gating.gate(logits, slots, self._table)

    def _misaligned(self, tokens: int) -> IntegrityError:
        return IntegrityError(
            "TOKENS_MISALIGNED",
            self._layer.name,
            expected=f"at least {self.token_slots.used} tokens, those of the step",
            got=f"{tokens}",
            remedy="report this with the engine's settings: something split the step's tokens",
        )
