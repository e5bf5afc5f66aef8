# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""``reroute`` and ``reroute_`` in Triton: a tile of tokens by expert ids, looked up in expert_map by indexed loads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weave_ops.reference import check_reroute
from weave_ops.triton.launch import check_device, current, programs_for

TILE = 512
"""Ids of a tile. No fewer than the threads of a program: were an id loaded twice, ``reroute_`` could overwrite it
between the two."""
WARPS = 4


@triton.jit(do_not_specialize=["tokens"])
def _reroute_kernel(
    topk_ids, token_slots, expert_map, out, tokens, slots, experts,
    ids_stride_token, ids_stride_rank, slots_stride, map_stride_slot, map_stride_expert, out_stride_token,
    out_stride_rank, TOP_K: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_RANKS: tl.constexpr,
):  # fmt: skip
    rank = tl.arange(0, BLOCK_RANKS)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(tokens, BLOCK_TOKENS), tl.num_programs(0)):
        token = (block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS))[:, None].to(tl.int64)
        wanted = (token < tokens) & (rank < TOP_K)
        ids = tl.load(topk_ids + token * ids_stride_token + rank * ids_stride_rank, mask=wanted, other=0)
        slot = tl.load(token_slots + token * slots_stride, mask=token < tokens, other=0)
        inside = (slot >= 0) & (slot < slots) & (ids >= 0) & (ids < experts)
        astray = tl.max((wanted & ~inside).to(tl.int32), axis=1)
        looked_up = wanted & inside & (astray == 0)[:, None]
        row = expert_map + slot.to(tl.int64) * map_stride_slot
        rows = tl.load(row + ids.to(tl.int64) * map_stride_expert, mask=looked_up, other=-1)
        tl.store(out + token * out_stride_token + rank * out_stride_rank, rows.to(ids.dtype), mask=wanted)


def reroute(
    topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor, *, programs: int | None = None
) -> torch.Tensor:
    """See `weave_ops.schema` and, for wrong ids and slots, `weave_ops.triton`. At most `programs` programs run."""
    check_reroute(topk_ids, token_slots, expert_map)
    check_device("reroute", topk_ids.device, token_slots=token_slots, expert_map=expert_map)
    out = topk_ids.new_empty(topk_ids.shape)
    _launch(topk_ids, token_slots, expert_map, out, programs)
    return out


def reroute_(
    topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor, *, programs: int | None = None
) -> None:
    """As ``reroute``, written over topk_ids."""
    check_reroute(topk_ids, token_slots, expert_map)
    check_device("reroute_", topk_ids.device, token_slots=token_slots, expert_map=expert_map)
    _check_overlap(topk_ids, token_slots=token_slots, expert_map=expert_map)
    _launch(topk_ids, token_slots, expert_map, topk_ids, programs)


def _launch(
    topk_ids: torch.Tensor,
    token_slots: torch.Tensor,
    expert_map: torch.Tensor,
    out: torch.Tensor,
    programs: int | None,
) -> None:
    tokens, top_k = topk_ids.shape
    if tokens == 0 or top_k == 0:
        return
    block_ranks = triton.next_power_of_2(top_k)
    block_tokens = max(1, TILE // block_ranks)
    with current(topk_ids.device):
        _reroute_kernel[programs_for(triton.cdiv(tokens, block_tokens), programs)](
            topk_ids, token_slots, expert_map, out, tokens, *expert_map.shape,
            *topk_ids.stride(), *token_slots.stride(), *expert_map.stride(), *out.stride(),
            TOP_K=top_k, BLOCK_TOKENS=block_tokens, BLOCK_RANKS=block_ranks, num_warps=WARPS,
        )  # fmt: skip


def _check_overlap(topk_ids: torch.Tensor, **others: torch.Tensor) -> None:
    """Raises RuntimeError if elements of topk_ids surely lie over each other, or over those of `others`."""
    if any(size > 1 and stride == 0 for size, stride in zip(topk_ids.shape, topk_ids.stride(), strict=True)):
        raise RuntimeError("reroute_: more than one element of topk_ids refers to a single memory location")
    for name, other in others.items():
        ours, theirs = _bytes(topk_ids), _bytes(other)
        if ours.start < theirs.stop and theirs.start < ours.stop:
            raise RuntimeError(f"reroute_: topk_ids and {name} refer to the same memory location")


def _bytes(tensor: torch.Tensor) -> range:
    """The addresses of a tensor's elements; none where they lie apart, as those of others may then lie between."""
    if tensor.numel() == 0 or not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return range(0)
    return range(tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
