"""What ``gating_reroute`` means, in plain torch: the oracle for every backend, and what runs where there is none."""

from __future__ import annotations

import torch

from weave_ops.reference import reroute
from weave_ops.schema import LIBRARY

SCORINGS = ("softmax", "sigmoid")


def check_gating(
    logits: torch.Tensor,
    correction_bias: torch.Tensor | None,
    top_k: int,
    scoring: str,
    n_group: int,
    topk_group: int,
    expert_map: torch.Tensor,
) -> None:
    """Raises TypeError or ValueError unless dtypes and sizes are those of ``gating_reroute``; reads no values."""
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"gating_reroute: logits must be float32, bfloat16 or float16, got {logits.dtype}")
    if logits.dim() != 2:
        raise ValueError(f"gating_reroute: logits must be [tokens, experts], got {list(logits.shape)}")
    experts = logits.shape[1]
    if correction_bias is not None:
        if correction_bias.dtype != torch.float32:
            raise TypeError(f"gating_reroute: correction_bias must be float32, got {correction_bias.dtype}")
        if list(correction_bias.shape) != [experts]:
            raise ValueError(f"gating_reroute: correction_bias must be [{experts}], got {list(correction_bias.shape)}")
    if scoring not in SCORINGS:
        raise ValueError(f"gating_reroute: scoring must be one of {', '.join(SCORINGS)}, got {scoring!r}")
    if n_group < 1 or experts % n_group != 0 or not 1 <= topk_group <= n_group:
        raise ValueError(
            f"gating_reroute: {experts} experts do not make {n_group} groups of equal size to take {topk_group} of"
        )
    if correction_bias is not None and n_group > 1 and experts // n_group < 2:
        raise ValueError("gating_reroute: with a correction bias a group needs two experts or more")
    if not 1 <= top_k <= topk_group * (experts // n_group):
        raise ValueError(f"gating_reroute: top_k must be 1 to {topk_group * (experts // n_group)}, got {top_k}")
    if expert_map.dim() == 2 and expert_map.shape[1] != experts:
        raise ValueError(f"gating_reroute: expert_map must have {experts} columns, got {list(expert_map.shape)}")


def gating_reroute(
    logits: torch.Tensor,
    correction_bias: torch.Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: bool,
    n_group: int,
    topk_group: int,
    routed_scaling_factor: float,
    token_slots: torch.Tensor,
    expert_map: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `weave_ops.schema`."""
    check_gating(logits, correction_bias, top_k, scoring, n_group, topk_group, expert_map)
    values = logits.float()
    scores = values.softmax(dim=-1) if scoring == "softmax" else values.sigmoid()
    choice = scores if correction_bias is None else scores + correction_bias
    if n_group > 1:
        choice = choice.masked_fill(
            ~_in_best_groups(choice, correction_bias is not None, n_group, topk_group), -torch.inf
        )
    chosen = _best(choice, top_k)
    weights = scores.gather(1, chosen)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * routed_scaling_factor, reroute(chosen.int(), token_slots, expert_map)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices int64 ``[T, count]`` of the highest scores, best first, the lower index first among equals."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _in_best_groups(choice: torch.Tensor, by_two_best: bool, n_group: int, topk_group: int) -> torch.Tensor:
    """Bool ``[T, M]``: whether an expert is in one of its token's best groups."""
    grouped = choice.view(choice.shape[0], n_group, choice.shape[1] // n_group)
    worth = grouped.topk(2, dim=-1).values.sum(dim=-1) if by_two_best else grouped.amax(dim=-1)
    best = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, _best(worth, topk_group), True)
    return best[:, :, None].expand_as(grouped).reshape(choice.shape)


LIBRARY.impl("gating_reroute", gating_reroute, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
