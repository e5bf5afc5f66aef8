"""What the operators mean, in plain torch: the oracle for every backend. Correct on any device, fast on none."""

from __future__ import annotations

import torch


def check_reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless dtypes and shapes are those of ``reroute``; reads no values."""
    if topk_ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"reroute: topk_ids must be int32 or int64, got {topk_ids.dtype}")
    for name, tensor in (("token_slots", token_slots), ("expert_map", expert_map)):
        if tensor.dtype != torch.int32:
            raise TypeError(f"reroute: {name} must be int32, got {tensor.dtype}")
    if topk_ids.dim() != 2:
        raise ValueError(f"reroute: topk_ids must be [tokens, top_k], got {list(topk_ids.shape)}")
    if token_slots.dim() != 1:
        raise ValueError(f"reroute: token_slots must have one dimension, got {list(token_slots.shape)}")
    if expert_map.dim() != 2:
        raise ValueError(f"reroute: expert_map must be [slots + 1, experts], got {list(expert_map.shape)}")
    if token_slots.shape[0] < topk_ids.shape[0]:
        raise ValueError(
            "reroute: token_slots must have at least one entry for each of the "
            f"{topk_ids.shape[0]} tokens, got {token_slots.shape[0]}"
        )


def reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    """See `weave_ops.schema`. Raises IndexError for a slot or an expert id outside of expert_map."""
    check_reroute(topk_ids, token_slots, expert_map)
    tokens = topk_ids.shape[0]
    slots = token_slots[:tokens].long()
    ids = topk_ids.long()
    bad_slot = (slots < 0) | (slots >= expert_map.shape[0])
    bad_ids = ((ids < 0) | (ids >= expert_map.shape[1])).any(dim=1)
    bad = (bad_slot | bad_ids).nonzero()
    if len(bad) > 0:
        token = int(bad[0])
        raise IndexError(
            f"reroute: token {token} has slot {int(slots[token])} and expert ids {ids[token].tolist()}, "
            f"but expert_map is {list(expert_map.shape)}"
        )
    return expert_map[slots[:, None], ids].to(topk_ids.dtype)
