"""Shapes and dtypes of the operators' results, for tracing, torch.compile and graph capture."""

from __future__ import annotations

import torch

from weave_ops.reference import check_reroute
from weave_ops.schema import LIBRARY


def reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    """An empty tensor like the result of ``reroute``."""
    check_reroute(topk_ids, token_slots, expert_map)
    return topk_ids.new_empty(topk_ids.shape)


def reroute_(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> None:
    """Nothing: ``reroute_`` changes values only."""
    check_reroute(topk_ids, token_slots, expert_map)


LIBRARY.impl("reroute", reroute, "Meta")  # type: ignore[no-untyped-call]
LIBRARY.impl("reroute_", reroute_, "Meta")  # type: ignore[no-untyped-call]
