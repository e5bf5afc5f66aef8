"""One step of a routed MoE layer: gating and rerouting, then every token through its rows."""

from __future__ import annotations

import torch

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)
from weave_bench.cuda.combine import combine
from weave_bench.cuda.geometry import Router
from weave_bench.cuda.grouped_matmul import grouped_matmul, tile_for
from weave_bench.cuda.sorting import sort_by_row
from weave_bench.cuda.step import ExpertWeights, Step


def correction_bias(router: Router, experts: int, device: torch.device) -> torch.Tensor | None:
    """Zeros where the router has one: the work is that of any other values."""
    return torch.zeros(experts, device=device) if router.biased else None


def route(
    step: Step, router: Router, bias: torch.Tensor | None, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 and rows int32, ``[tokens, top_k]`` each, by the fused operator."""
    weights, rows = torch.ops.npu_weave.gating_reroute.default(
        step.logits, bias, router.top_k, router.scoring, router.renormalize, router.n_group, router.topk_group,
        router.routed_scaling_factor, step.token_slots, expert_map,
    )  # fmt: skip
    return weights, rows


def route_separately(
    step: Step, router: Router, bias: torch.Tensor | None, base_map: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `route`, with rerouting in torch operators (the paper's SingleOp) after the same gating by our operator.

    Args:
        base_map: int32 ``[slots + 1, experts]``, every expert its own number, so that the gating reroutes nothing.
    """
    weights, ids = route(step, router, bias, base_map)
    at = step.token_slots.long()[:, None] * expert_map.shape[1] + ids
    return weights, expert_map.view(-1)[at]


def experts(hidden: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, held: ExpertWeights) -> torch.Tensor:
    """Every token through its rows: ``[tokens, hidden]``, rows of other ranks left out.

    Args:
        weights, rows: as from `route`.
    """
    count = len(held.w13)
    # by what the model routes here: the tiles are those of the base model's own step
    tile = tile_for(rows.numel(), held.expert_map.shape[1])
    blocks = sort_by_row(rows, count, tile.assignments)
    activated = grouped_matmul(hidden, held.w13, blocks, tile, gated=True)
    expert_out = grouped_matmul(activated, held.w2, blocks, tile, gated=False)
    return combine(expert_out, weights, rows, count)
