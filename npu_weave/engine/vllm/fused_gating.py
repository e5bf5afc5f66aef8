"""When gating and rerouting may be one operator: when its answers are the engine's own, bit for bit.

The operator's scores may differ from an engine's in the last bit, its order and its choice among equal scores too; the
base model's outputs would no longer be those of plain vLLM. So the two are compared at start-up on the device that
serves, and where a single bit differs the engine's own gating stays, and its ids are rerouted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_weave.experts.gating import Gating

_TRIAL_TOKENS = 512

Answers = tuple[torch.Tensor, torch.Tensor]
"""Weights and ids."""


def gating_of(router: Any) -> Gating | None:
    """What `router` does, in the operator's terms; None where it has none for it."""
    known = type(router).__name__ in ("CPURouter", "FusedTopKRouter", "FusedTopKBiasRouter", "GroupedTopKRouter")
    scoring = getattr(router, "scoring_func", "softmax")
    special = (
        getattr(router, "custom_routing_function", None),
        getattr(router, "_hash_indices_table", None),
        router.capture_fn,
        router.eplb_state,
    )
    if not known or scoring not in ("softmax", "sigmoid") or any(each is not None for each in special):
        return None
    bias = getattr(router, "e_score_correction_bias", None)
    return Gating(
        top_k=router.top_k,
        scoring=scoring,
        renormalize=bool(getattr(router, "renormalize", True)),
        n_group=getattr(router, "num_expert_group", None) or 1,
        topk_group=getattr(router, "topk_group", None) or 1,
        routed_scaling_factor=float(getattr(router, "routed_scaling_factor", 1.0)),
        correction_bias=None if bias is None else bias.float(),
    )


def fusable_gating(router: Any, experts: int, device: torch.device, dtype: torch.dtype) -> Gating | None:
    """The operator's settings that answer as `router` does, bit for bit, or None: the engine's own gating must stay.

    Args:
        experts: that the router chooses from.
        dtype: of the model; logits come in it or in float32.
    """
    gating = gating_of(router)
    if gating is None or not all(
        equals_engine(router, gating, experts, device, each) for each in {dtype, torch.float32}
    ):
        return None
    return gating


def equals_engine(router: Any, gating: Gating, experts: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the operator answers trial logits as `router` does, see `same_answers`.

    Args:
        experts: that the router chooses from.
        dtype: of the router's logits.
    """
    base = torch.arange(experts, dtype=torch.int32, device=device)[None]

    def theirs(logits: torch.Tensor) -> Answers:
        # routers look at the hidden states' number of tokens only
        weights, ids = router._compute_routing(logits.new_zeros(len(logits), 1), logits, torch.int32)
        return weights, ids

    def ours(logits: torch.Tensor) -> Answers:
        return gating.gate(logits, torch.zeros(len(logits), dtype=torch.int32, device=device), base)

    return same_answers(theirs, ours, experts, gating.top_k, device, dtype)


def same_answers(
    theirs: Callable[[torch.Tensor], Answers],
    ours: Callable[[torch.Tensor], Answers],
    experts: int,
    top_k: int,
    device: torch.device,
    dtype: torch.dtype,
) -> bool:
    """Whether two gates answer trial logits alike: types and bits of weights, ids, and the order of both.

    Args:
        theirs, ours: from logits ``[tokens, experts]`` to weights and ids ``[tokens, top_k]``.
        dtype: of the logits.
    """
    logits = _trial(experts, top_k, dtype).to(device)
    (weights, ids), (own_weights, own_ids) = theirs(logits), ours(logits)
    same_weights = weights.dtype == own_weights.dtype and torch.equal(
        weights.contiguous().view(torch.uint8), own_weights.contiguous().view(torch.uint8)
    )
    return same_weights and torch.equal(ids.to(torch.int32), own_ids)


def _trial(experts: int, top_k: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits ``[tokens, experts]``: random ones, and such that equal scores lie where the choice ends."""
    generator = torch.Generator().manual_seed(2508)
    logits = torch.randn(_TRIAL_TOKENS, experts, generator=generator) * 3
    few = torch.randint(0, max(2, experts // max(top_k, 1)), (_TRIAL_TOKENS, experts), generator=generator)
    return torch.cat([logits, few / 4, torch.zeros(1, experts)]).to(dtype)
