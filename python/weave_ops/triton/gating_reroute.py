# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""``gating_reroute`` in Triton: a program reads the logits of a few tokens once and does all the rest in registers.

Scores become integer keys of the same order (`_key`): among integers, NaN, ties and infinities are the same on every
device. The experts are chosen in ``top_k`` rounds of the highest key, then the lowest expert among those that have it.

A tile is tokens by lanes. A group of experts takes a power of two of lanes, the groups of a token lie side by side, and
the lanes left over hold the key NOTHING, so that groups are reduced by a change of shape alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weave_ops.gating_reference import check_gating
from weave_ops.reference import check_reroute
from weave_ops.triton.launch import check_device, current, programs_for

TILE = 512
"""Lanes of a tile, where a token has fewer: 16 registers a thread of the one warp that a program is."""
WARPS = 1
"""A token's lanes stay in one warp, so that no round waits for a barrier."""

NOTHING = tl.constexpr(-(2**31))
"""The key below all numbers' keys: of lanes without an expert, and of what has been chosen."""
KEY_OF_MINUS_INFINITY = tl.constexpr(-(2**31) + 0x7FFFFF)
KEY_OF_NAN = tl.constexpr(0x7FC00000)
NO_LABEL = tl.constexpr(2**31 - 1)


@triton.jit
def _exp(x):
    """exp within 1e-6, relative. A GPU's own multiplies by log2(e) first, and errs the more the larger x is."""
    power = tl.floor(x * 1.4426950408889634 + 0.5)
    power = tl.where(power < -126.0, -126.0, power)  # the exponents of normal numbers: what is beyond them is left
    power = tl.where(power > 127.0, 127.0, power)  # to the exp of the rest, infinities too
    rest = (x - power * 0.693359375) + power * 2.12194440e-4  # ln 2 in two parts: the first product is exact
    return tl.exp2(power) * tl.exp(rest)


@triton.jit
def _score(x, highest, total, SOFTMAX: tl.constexpr):
    """The scores of logits x of tokens whose highest logit and sum of powers are known (sigmoid needs neither)."""
    return _exp(x - highest) / total if SOFTMAX else 1.0 / (1.0 + _exp(-x))


@triton.jit
def _key(number):
    """int32 keys in the order of float32 numbers, none of which is -0; all NaN have one key, the highest."""
    bits = number.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(number != number, KEY_OF_NAN, bits)


@triton.jit
def _number(key):
    """The float32 number that has a key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _best(keys, labels):
    """Of each row of keys ``[rows, lanes]``, the highest, and the lowest label (``[lanes]``) of a lane that has it."""
    highest = tl.max(keys, axis=1)
    return highest, tl.min(tl.where(keys == highest[:, None], labels[None, :], NO_LABEL), axis=1)


@triton.jit
def _best_groups(
    keys,
    BY_TWO_BEST: tl.constexpr,
    N_GROUP: tl.constexpr,
    TOPK_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
):
    """int32, of the shape of keys: 1 for the lanes of a token's best groups, else 0."""
    members = tl.reshape(keys, (BLOCK_TOKENS * BLOCK_GROUPS, BLOCK_MEMBERS))
    lanes = tl.arange(0, BLOCK_MEMBERS)
    highest, lane = _best(members, lanes)
    if BY_TWO_BEST:
        second = tl.max(tl.where(lanes[None, :] == lane[:, None], NOTHING, members), axis=1)
        highest = _key(_number(highest) + _number(second))
    groups = tl.arange(0, BLOCK_GROUPS)
    worth = tl.reshape(highest, (BLOCK_TOKENS, BLOCK_GROUPS))
    worth = tl.where(groups[None, :] < N_GROUP, worth, NOTHING)
    among = tl.zeros((BLOCK_TOKENS, BLOCK_GROUPS), tl.int32)
    for _round in range(TOPK_GROUP):
        _, group = _best(worth, groups)
        chosen = groups[None, :] == group[:, None]
        among = tl.where(chosen, 1, among)
        worth = tl.where(chosen, NOTHING, worth)
    among = tl.broadcast_to(among[:, :, None], (BLOCK_TOKENS, BLOCK_GROUPS, BLOCK_MEMBERS))
    return tl.reshape(among, (BLOCK_TOKENS, BLOCK_GROUPS * BLOCK_MEMBERS))


@triton.jit
def _choose(keys, experts, TOP_K: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_RANKS: tl.constexpr):
    """The ids int32 ``[BLOCK_TOKENS, BLOCK_RANKS]`` of the experts with the highest keys, the best first."""
    ranks = tl.arange(0, BLOCK_RANKS)
    ids = tl.zeros((BLOCK_TOKENS, BLOCK_RANKS), tl.int32)
    for rank in range(TOP_K):
        _, expert = _best(keys, experts)
        ids = tl.where(ranks[None, :] == rank, expert[:, None], ids)
        keys = tl.where(experts[None, :] == expert[:, None], NOTHING, keys)
    return ids


@triton.jit(do_not_specialize=["tokens"])
def _gating_reroute_kernel(
    logits, correction_bias, token_slots, expert_map, weights_out, rows_out, tokens, slots, scale,
    logits_stride_token, logits_stride_expert, bias_stride, slots_stride, map_stride_slot, map_stride_expert,
    TOP_K: tl.constexpr, SOFTMAX: tl.constexpr, BIASED: tl.constexpr, RENORMALIZE: tl.constexpr,
    N_GROUP: tl.constexpr, TOPK_GROUP: tl.constexpr, GROUP_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_RANKS: tl.constexpr, BLOCK_GROUPS: tl.constexpr, BLOCK_MEMBERS: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK_GROUPS * BLOCK_MEMBERS)
    real = (lanes % BLOCK_MEMBERS < GROUP_SIZE) & (lanes // BLOCK_MEMBERS < N_GROUP)
    experts = lanes
    if N_GROUP > 1 and GROUP_SIZE < BLOCK_MEMBERS:
        experts = lanes // BLOCK_MEMBERS * GROUP_SIZE + lanes % BLOCK_MEMBERS
    columns = experts[None, :].to(tl.int64) * logits_stride_expert
    if BIASED:
        bias = tl.load(correction_bias + experts * bias_stride, mask=real, other=0.0)[None, :]
    ranks = tl.arange(0, BLOCK_RANKS)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(tokens, BLOCK_TOKENS), tl.num_programs(0)):
        token = (block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS))[:, None].to(tl.int64)
        here = token < tokens
        slot = tl.load(token_slots + token * slots_stride, mask=here, other=0)
        row = logits + token * logits_stride_token
        x = tl.load(row + columns, mask=here & real[None, :], other=float("-inf")).to(tl.float32)
        highest = 0.0
        total = 1.0
        if SOFTMAX:
            highest = tl.max(x, axis=1)[:, None]
            total = tl.sum(_exp(x - highest), axis=1)[:, None]
        choice = _score(x, highest, total, SOFTMAX)
        if BIASED:
            choice += bias
        keys = tl.where(real[None, :], _key(choice), NOTHING)
        if TOPK_GROUP < N_GROUP:
            among = _best_groups(keys, BIASED, N_GROUP, TOPK_GROUP, BLOCK_TOKENS, BLOCK_GROUPS, BLOCK_MEMBERS)
            keys = tl.where((among == 0) & real[None, :], KEY_OF_MINUS_INFINITY, keys)
        ids = _choose(keys, experts, TOP_K, BLOCK_TOKENS, BLOCK_RANKS).to(tl.int64)

        wanted = here & (ranks < TOP_K)
        x = tl.load(row + ids * logits_stride_expert, mask=wanted, other=0.0).to(tl.float32)
        weights = _score(x, highest, total, SOFTMAX)
        if RENORMALIZE:
            weights /= tl.sum(tl.where(ranks < TOP_K, weights, 0.0), axis=1)[:, None]
        known = (slot >= 0) & (slot < slots)
        places = expert_map + slot.to(tl.int64) * map_stride_slot + ids * map_stride_expert
        rows = tl.load(places, mask=wanted & known, other=-1)
        out = token * TOP_K + ranks
        tl.store(weights_out + out, tl.where(known, weights * scale, float("nan")), mask=wanted)
        tl.store(rows_out + out, rows, mask=wanted)


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
    *,
    programs: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `weave_ops.schema` and, for wrong slots, `weave_ops.triton`. At most `programs` programs run."""
    check_gating(logits, correction_bias, top_k, scoring, n_group, topk_group, expert_map)
    tokens, experts = logits.shape
    weights = logits.new_empty((tokens, top_k), dtype=torch.float32)
    rows = logits.new_empty((tokens, top_k), dtype=torch.int32)
    check_reroute(rows, token_slots, expert_map)
    others = {"correction_bias": correction_bias, "token_slots": token_slots, "expert_map": expert_map}
    check_device("gating_reroute", logits.device, **others)
    if tokens == 0:
        return weights, rows
    group_size = experts // n_group
    block_groups, block_members = triton.next_power_of_2(n_group), triton.next_power_of_2(group_size)
    block_tokens = max(1, TILE // (block_groups * block_members))
    with current(logits.device):
        _gating_reroute_kernel[programs_for(triton.cdiv(tokens, block_tokens), programs)](
            logits, correction_bias, token_slots, expert_map, weights, rows, tokens, expert_map.shape[0],
            routed_scaling_factor, *logits.stride(), 0 if correction_bias is None else correction_bias.stride(0),
            *token_slots.stride(), *expert_map.stride(),
            TOP_K=top_k, SOFTMAX=scoring == "softmax", BIASED=correction_bias is not None, RENORMALIZE=renormalize,
            N_GROUP=n_group, TOPK_GROUP=topk_group, GROUP_SIZE=group_size,
            BLOCK_TOKENS=block_tokens, BLOCK_RANKS=triton.next_power_of_2(top_k),
            BLOCK_GROUPS=block_groups, BLOCK_MEMBERS=block_members, num_warps=WARPS,
        )  # fmt: skip
    return weights, rows
