"""Choosing experts, sorting tokens by expert, and putting them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_npu.operators.quantisation import check_row_scale, quantised
from torch_npu.strict import check, operator

MAX_GATED_EXPERTS = 2048
MAX_ROUTED_EXPERTS = 10240

GATHER = 0
"""row_idx_type: for each token and choice, its row."""

CUMULATIVE, COUNTS = 0, 1
"""expert_tokens_num_type."""

SOFTMAX, SIGMOID = 0, 1
"""norm_type: how logits become scores."""

BY_MAXIMUM, BY_BEST_TWO = 0, 1
"""group_select_mode: a group of experts is as good as its best score, or as the sum of its best two."""

UNQUANTISED, DYNAMIC = -1, 1
"""quant_mode: tokens as they are, or int8 with a scale each."""

NOT_ACTIVE = -1
"""The row of a choice that is not in the active range."""


def top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The indices of the k largest of each row, the largest first; of equals, the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def gate(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chosen experts of each token of `x` ``[T, experts]``.

    The bias counts for choosing only. Weights of sigmoid scores always sum to `routed_scaling_factor`, those of a
    softmax if `renorm` is 1.

    Returns weights ``[T, k]`` of x's type, ids int32 ``[T, k]``, and if asked for all scores, float32, else nothing.
    """
    check(x.dim() == 2 and x.is_floating_point(), "x", f"logits [T, experts], not {x.dtype} {tuple(x.shape)}")
    experts = x.shape[1]
    check(experts <= MAX_GATED_EXPERTS, "x", f"at most {MAX_GATED_EXPERTS} experts, not {experts}")
    check(group_count > 0 and experts % group_count == 0, "group_count", f"{group_count} of {experts} experts")
    check(1 <= k_group <= group_count, "k_group", f"1 to {group_count}, not {k_group}")
    check(1 <= k <= experts // group_count * k_group, "k", f"{k} of {experts // group_count * k_group} experts")
    check(group_select_mode in (BY_MAXIMUM, BY_BEST_TWO), "group_select_mode", f"0 or 1, not {group_select_mode}")
    check(renorm in (0, 1), "renorm", f"0 or 1, not {renorm}")
    check(norm_type in (SOFTMAX, SIGMOID), "norm_type", f"0 and 1 are emulated, not {norm_type}")
    if bias is not None:
        right = tuple(bias.shape) == (experts,) and bias.dtype == x.dtype
        check(right, "bias", f"{x.dtype} [{experts}], not {bias.dtype} {tuple(bias.shape)}")
    scores = x.float().softmax(-1) if norm_type == SOFTMAX else x.float().sigmoid()
    judged = scores if bias is None else scores + bias.float()
    if group_count > 1:
        grouped = judged.view(len(x), group_count, -1)
        if group_select_mode == BY_BEST_TWO:
            check(grouped.shape[2] > 1, "group_select_mode", "1 needs groups of two experts and more")
        best = grouped.topk(1 + group_select_mode, -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, top_k(best, k_group), True)
        judged = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
    ids = top_k(judged, k)
    weights = scores.gather(1, ids)
    if norm_type == SIGMOID or renorm == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = (weights * routed_scaling_factor).to(x.dtype)
    return weights, ids.to(torch.int32), scores if out_flag else torch.empty(0)


@operator(
    "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, "
    "int k_group=1, int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, bool out_flag=False, "
    "float routed_scaling_factor=1.0, float eps=1e-20) -> (Tensor, Tensor, Tensor)"
)
def npu_moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return gate(
        x, k, bias, k_group, group_count, group_select_mode, renorm, norm_type, out_flag, routed_scaling_factor, eps
    )


def route(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    scale: torch.Tensor | None,
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: Sequence[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sorts the tokens ``[T, H]`` by the experts that they chose, ``[T, K]`` int32, as far as those are active.

    Documented as aclnnMoeInitRoutingV3. With quant_mode `DYNAMIC`, tokens are quantised, see `quantised`, and their
    scales sorted too. With `UNQUANTISED`, `scale`, float32 ``[T]``, is sorted as the tokens are, which may be int8.

    Returns the sorted rows ``[T * K, H]``, the row of each choice, int32 ``[T * K]`` with `NOT_ACTIVE` for the others,
    the tokens of each active expert, int64, and the rows' scales, float32 ``[T * K]``, if there are any. Rows and
    scales that no active choice fills, undefined on a device, are 0.
    """
    check(x.dim() == 2, "x", f"[T, H], not {tuple(x.shape)}")
    right = expert_idx.dtype == torch.int32 and expert_idx.dim() == 2 and len(expert_idx) == len(x)
    check(right, "expert_idx", f"int32 [{len(x)}, K], not {expert_idx.dtype} {tuple(expert_idx.shape)}")
    check(0 < expert_num <= MAX_ROUTED_EXPERTS, "expert_num", f"1 to {MAX_ROUTED_EXPERTS}, not {expert_num}")
    check(expert_tokens_num_flag, "expert_tokens_num_flag", "only True is emulated")
    check(expert_tokens_num_type in (CUMULATIVE, COUNTS), "expert_tokens_num_type", f"0 or 1: {expert_tokens_num_type}")
    check(row_idx_type == GATHER, "row_idx_type", f"0 is emulated, not {row_idx_type}")
    choices = expert_idx.numel()
    check(active_num in (-1, 0, choices), "active_num", f"{active_num}, but there are {choices} choices")
    check(len(active_expert_range) in (0, 2), "active_expert_range", f"[start, end], not {active_expert_range}")
    first, end = active_expert_range or (0, expert_num)
    check(0 <= first < end <= expert_num, "active_expert_range", f"{first}..{end} of {expert_num} experts")
    flat = expert_idx.reshape(-1).long()
    inside = bool(((flat >= 0) & (flat < expert_num)).all())
    check(
        inside,
        "expert_idx",
        f"outside 0..{expert_num - 1}: {flat.min() if choices else 0}..{flat.max() if choices else 0}",
    )
    x, by_token = _with_scales(x, scale, quant_mode)
    active = (flat >= first) & (flat < end)
    count = int(active.sum())
    order = torch.where(active, flat, expert_num).argsort(stable=True)[:count]
    tokens_in_order = order // max(1, expert_idx.shape[1])
    rows = x.new_zeros(choices, x.shape[1])
    rows[:count] = x[tokens_in_order]
    scales = torch.empty(0)
    if by_token is not None:
        scales = torch.zeros(choices)
        scales[:count] = by_token[tokens_in_order]
    row_of = torch.full((choices,), NOT_ACTIVE, dtype=torch.int32)
    row_of[order] = torch.arange(count, dtype=torch.int32)
    tokens = torch.bincount(flat[active] - first, minlength=end - first)
    return rows, row_of, tokens.cumsum(0) if expert_tokens_num_type == CUMULATIVE else tokens, scales


def _with_scales(
    x: torch.Tensor, scale: torch.Tensor | None, quant_mode: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    check(quant_mode in (UNQUANTISED, DYNAMIC), "quant_mode", f"-1 and 1 are emulated, not {quant_mode}")
    if quant_mode == DYNAMIC:
        check(x.is_floating_point(), "x", f"{x.dtype} cannot be quantised")
        check(scale is None, "scale", "of smoothing is not emulated")
        return quantised(x)
    if scale is not None:
        check_row_scale(scale, len(x), "scale")
    return x, scale


@operator(
    "npu_moe_init_routing_v2(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, "
    "bool expert_tokens_num_flag=False, int quant_mode=-1, int[2] active_expert_range=[], int row_idx_type=0, "
    "int? x_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
def npu_moe_init_routing_v2(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    scale: torch.Tensor | None,
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: Sequence[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `route`."""
    return route(
        x, expert_idx, scale, active_num, expert_num, expert_tokens_num_type, expert_tokens_num_flag, quant_mode,
        active_expert_range, row_idx_type,
    )  # fmt: skip


@operator(
    "npu_moe_token_permute(Tensor tokens, Tensor indices, int? num_out_tokens=None, bool padded_mode=False) "
    "-> (Tensor, Tensor)"
)
def npu_moe_token_permute(
    tokens: torch.Tensor, indices: torch.Tensor, num_out_tokens: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts tokens ``[T, H]`` by `indices`, ``[T, K]`` or ``[T]``.

    Returns the rows ``[T * K, H]`` and the row of each choice, int32 ``[T * K]``.
    """
    check(tokens.dim() == 2, "tokens", f"[T, H], not {tuple(tokens.shape)}")
    right = indices.dim() in (1, 2) and len(indices) == len(tokens) and indices.dtype in (torch.int32, torch.int64)
    check(right, "indices", f"integers [{len(tokens)}, K], not {indices.dtype} {tuple(indices.shape)}")
    choices = indices.numel()
    check(num_out_tokens in (None, 0, choices), "num_out_tokens", f"{num_out_tokens}, but there are {choices} choices")
    order = indices.reshape(-1).argsort(stable=True)
    row_of = torch.empty_like(order, dtype=torch.int32)
    row_of[order] = torch.arange(choices, dtype=torch.int32)
    per_token = indices.shape[1] if indices.dim() == 2 else 1
    return tokens[order // max(1, per_token)], row_of


@operator(
    "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, "
    "bool padded_mode=False, int[]? restore_shape=None) -> Tensor"
)
def npu_moe_token_unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None,
    restore_shape: Sequence[int] | None,
) -> torch.Tensor:
    """Fetches the rows of `permuted_tokens` ``[rows, H]`` back and sums each token's, weighted with `probs` ``[T, K]``.

    Without `probs`, each row is a token. `restore_shape` belongs to a padded mode and must be the result's shape.
    """
    check(permuted_tokens.dim() == 2, "permuted_tokens", f"[rows, H], not {tuple(permuted_tokens.shape)}")
    right = sorted_indices.dtype == torch.int32 and sorted_indices.dim() == 1
    check(right, "sorted_indices", f"int32 [choices], not {sorted_indices.dtype} {tuple(sorted_indices.shape)}")
    rows = sorted_indices.long()
    inside = bool(((rows >= 0) & (rows < len(permuted_tokens))).all())
    check(inside, "sorted_indices", f"outside 0..{len(permuted_tokens) - 1}")
    tokens = permuted_tokens[rows]
    if probs is not None:
        right = probs.dim() == 2 and probs.numel() == len(rows)
        check(right, "probs", f"[T, K] with {len(rows)} weights, not {tuple(probs.shape)}")
        weighted = tokens.float().view(*probs.shape, -1) * probs.float()[..., None]
        tokens = weighted.sum(1).to(permuted_tokens.dtype)
    if restore_shape is not None:
        check(list(restore_shape) == list(tokens.shape), "restore_shape", f"{restore_shape} for {tuple(tokens.shape)}")
    return tokens
