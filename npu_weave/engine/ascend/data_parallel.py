"""Data parallel ranks that compute each other's tokens: they know each other's slots, and have the same adapters."""

from __future__ import annotations

import torch
import torch.distributed as dist
from vllm.distributed import get_dp_group
from vllm.forward_context import get_forward_context

from npu_weave.errors import IntegrityError
from npu_weave.experts.token_slots import TokenSlots

_GATHERED = "npu_weave_gathered_tokens"
"""Attribute of a step's forward context: of how many tokens a rank the slots are gathered."""


def slots_of_all_ranks(own: TokenSlots, tokens: int) -> torch.Tensor:
    """The slots of the step's first `tokens` tokens of every data parallel rank, int32 ``[ranks * tokens]``, by rank.

    A collective of all data parallel ranks, on the device's stream, in the first MoE layer of a step; later layers find
    what it left. Ranks without requests take part, as they do when hidden states are gathered. It reads and writes
    fixed addresses and reads nothing on the host, so a graph may capture it. Mutates ``own.of_all_ranks``.
    """
    group, context = get_dp_group(), get_forward_context()
    slots = own.of_all_ranks[: group.world_size * tokens]
    if getattr(context, _GATHERED, None) != tokens:
        dist.all_gather_into_tensor(slots, own.buffer[:tokens], group=group.device_group)
        setattr(context, _GATHERED, tokens)
    return slots


def check_same_adapters(layout: str) -> None:
    """Compare which adapters lie where with all data parallel ranks. A collective of them, on the host.

    Args:
        layout: digest of contents, slots and rows on this rank.

    Raises:
        IntegrityError: RANKS_DISAGREE, on every rank.
    """
    group = get_dp_group()
    layouts: list[str] = [""] * group.world_size
    dist.all_gather_object(layouts, layout, group=group.cpu_group)
    if len(set(layouts)) > 1:
        raise IntegrityError(
            "RANKS_DISAGREE",
            "adapters of the data parallel ranks",
            expected="the same adapters in the same rows on all of them",
            got=", ".join(f"rank {rank}: {each[:12]}" for rank, each in enumerate(layouts)),
            remedy="load the same adapters on every rank, in the same order, before the first request",
        )
