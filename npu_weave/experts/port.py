"""What the core needs of an engine's MoE layer, and all it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.experts.gating import Gating
from npu_weave.experts.token_slots import TokenSlots


class RowLimit(NamedTuple):
    """The most rows that an engine's kernels serve correctly on one rank, and what sets that limit."""

    rows: int
    reason: str


class Routing(Protocol):
    """Sends the tokens of the step in hand to rows of one layer.

    Attributes:
        token_slots: the slots of the step's tokens.
    """

    token_slots: TokenSlots

    def slots(self, *, first: int = 0, of: int) -> torch.Tensor:
        """The slots of the step's tokens from the `first` on, int32, padding included, as part of the buffer.

        Args:
            of: how many tokens the step has, padding included.

        Raises:
            IntegrityError: TOKENS_MISALIGNED, the step has more tokens than that.
        """

    def reroute(self, ids: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        """Maps ``topk_ids`` int32 or int64 ``[tokens, top_k]`` to rows, same shape and dtype.

        Args:
            slots: int32 ``[>= tokens]``, the slot of each, where `ids` are of other tokens than the step's, in order.
        """

    def gate(
        self, logits: torch.Tensor, gating: Gating, slots: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chooses by ``[tokens, num_experts]`` and maps: weights float32 and rows int32, ``[tokens, top_k]`` each.

        Args:
            slots: as for `reroute`.
        """


class MoELayerPort(Protocol):
    """One MoE layer of an engine, seen by the expert weight manager.

    Attributes:
        index: layer index in the model.
        name: module path, for messages.
        num_experts: experts the router chooses from (M).
    """

    index: int
    name: str
    num_experts: int

    @property
    def row_limit(self) -> RowLimit | None:
        """The most rows of a rank; None for no limit."""

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The expert parameters by name, in kernel layout: ``[num_experts, ...]`` each, or this rank's share of them
        (`ExpertPlacement`). Without gradients; what is returned keeps its memory.
        """

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """Experts from checkpoint layout to kernel layout with the engine's own weight processing.

        Returns:
            For each name of `weights`, a tensor ``[len(experts), ...]`` on the host. Includes this rank's tensor
            parallel slice only, and nothing of the memory of `experts`, which is used again. The layer itself is not
            touched.
        """

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """Make the parameter `name` use `tensor` ``[rows, ...]``; its old storage is let go."""

    def insert_routing(self, routing: Routing) -> None:
        """Have every token routed by `routing`, after gating or in its place, and before any dispatch. Called once."""
