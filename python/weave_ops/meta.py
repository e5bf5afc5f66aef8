"""Shapes and dtypes of the operators' results, for tracing, torch.compile and graph capture."""

from __future__ import annotations

import torch

from weave_ops.gating_reference import check_gating
from weave_ops.reference import check_reroute
from weave_ops.schema import LIBRARY


def reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    """An empty tensor like the result of ``reroute``."""
    check_reroute(topk_ids, token_slots, expert_map)
    return topk_ids.new_empty(topk_ids.shape)


def reroute_(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> None:
    """Nothing: ``reroute_`` changes values only."""
    check_reroute(topk_ids, token_slots, expert_map)


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
    """Empty tensors like the results of ``gating_reroute``."""
    check_gating(logits, correction_bias, top_k, scoring, n_group, topk_group, expert_map)
    ids = logits.new_empty((logits.shape[0], top_k), dtype=torch.int32)
    check_reroute(ids, token_slots, expert_map)
    return logits.new_empty(ids.shape, dtype=torch.float32), ids


LIBRARY.impl("gating_reroute", gating_reroute, "Meta")  # type: ignore[no-untyped-call]
LIBRARY.impl("reroute", reroute, "Meta")  # type: ignore[no-untyped-call]
LIBRARY.impl("reroute_", reroute_, "Meta")  # type: ignore[no-untyped-call]
