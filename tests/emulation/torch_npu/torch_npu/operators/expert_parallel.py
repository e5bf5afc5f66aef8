"""Tokens sent to the ranks of their experts and back (MC2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from torch_npu.collectives import group_named
from torch_npu.operators.quantisation import quantised
from torch_npu.strict import check, operator

MAX_EXPERTS = 1024
MAX_TOKENS = 512
MAX_CHOICES = 16
ALGORITHMS = ("", "fullmesh", "fullmesh_v1", "fullmesh_v2")
CUMULATIVE, COUNTS = 0, 1
"""expert_token_nums_type."""

UNQUANTISED, DYNAMIC = 0, 2
"""quant_mode of the dispatch: rows as they are, or int8 with a scale each."""

ASSIST_WORDS = 128
"""int32 values that dispatch keeps for combine, a row; the first is the rank that the row came from."""


@dataclass(frozen=True)
class _Exchange:
    """One layer's tokens ``[T, H]`` and the experts that they chose, on this rank of a group."""

    group: dist.ProcessGroupGloo
    rank: int
    ranks: int
    experts: int
    """Of all ranks; each has the same number, in order."""
    ids: torch.Tensor
    active: torch.Tensor

    @property
    def experts_here(self) -> int:
        return self.experts // self.ranks

    def sent(self) -> torch.Tensor:
        """The choices that are sent, as indices into the flat ids, in the order of their experts."""
        flat = torch.where(self.active, self.ids.reshape(-1).long(), self.experts)
        return flat.argsort(stable=True)[: int(self.active.sum())]

    def counts(self) -> torch.Tensor:
        """How many of this rank's choices go to each expert, int64 ``[ranks, experts here]``."""
        chosen = self.ids.reshape(-1).long()[self.active]
        return torch.bincount(chosen, minlength=self.experts).view(self.ranks, self.experts_here)

    def swap(self, rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        """Sends the first `sent[0]` rows to rank 0, the next to rank 1, and so on."""
        arrived = rows.new_empty(sum(received), *rows.shape[1:])
        self.group.alltoall_base(arrived, rows.contiguous(), received, sent).wait()
        return arrived

    def all_agree(self, values: list[int]) -> None:
        """Refuses the call when the ranks pass different numbers."""
        mine = torch.tensor(values)
        everyone = [torch.empty_like(mine) for _ in range(self.ranks)]
        self.group.allgather([everyone], [mine]).wait()
        agreed = all(torch.equal(theirs, mine) for theirs in everyone)
        check(
            agreed, "moe_expert_num", f"tokens, width, choices, experts differ: {[list(map(int, v)) for v in everyone]}"
        )


def _exchange(
    ids: torch.Tensor, mask: torch.Tensor | None, group_ep: str, ranks: int, rank: int, experts: int, algorithm: str
) -> _Exchange:
    right = ids.dtype == torch.int32 and ids.dim() == 2
    check(right, "expert_ids", f"int32 [T, K], not {ids.dtype} {tuple(ids.shape)}")
    tokens, choices = ids.shape
    check(1 <= tokens <= MAX_TOKENS, "expert_ids", f"1 to {MAX_TOKENS} tokens, not {tokens}")
    check(1 <= choices <= min(MAX_CHOICES, experts), "expert_ids", f"{choices} choices of {experts} experts")
    check(0 < experts <= MAX_EXPERTS, "moe_expert_num", f"1 to {MAX_EXPERTS}, not {experts}")
    check(experts % ranks == 0, "moe_expert_num", f"{experts} do not divide over {ranks} ranks")
    check(algorithm in ALGORITHMS, "comm_alg", f"one of {ALGORITHMS}, not {algorithm!r}")
    inside = bool(((ids >= 0) & (ids < experts)).all())
    check(inside, "expert_ids", f"outside 0..{experts - 1}: {int(ids.min())}..{int(ids.max())}")
    try:
        group = group_named(group_ep)
    except KeyError:
        check(False, "group_ep", f"{group_ep!r} is not the name of a group")
        raise
    check(group.size() == ranks and group.rank() == rank, "ep_rank_id", f"{rank} of {ranks} is not this rank")
    active = torch.ones(tokens, dtype=torch.bool) if mask is None else mask
    right = active.dtype == torch.bool and tuple(active.shape) == (tokens,)
    check(right, "x_active_mask", f"bool [{tokens}], not {active.dtype} {tuple(active.shape)}")
    check(bool((active[1:] <= active[:-1]).all()), "x_active_mask", "the active tokens must be the first")
    return _Exchange(group, rank, ranks, experts, ids, active[:, None].expand(tokens, choices).reshape(-1))


def _check_tensor_parallel(world_size: int, rank: int) -> None:
    check(world_size in (0, 1) and rank == 0, "tp_world_size", f"only 0 and 1 are emulated, not {world_size}")


@operator(
    "npu_moe_distribute_dispatch_v2(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
    "Tensor? elastic_info=None, Tensor? performance_info=None, str group_tp='', int tp_world_size=0, "
    "int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, "
    "int quant_mode=0, int global_bs=0, int expert_token_nums_type=1, str comm_alg='', int zero_expert_num=0, "
    "int copy_expert_num=0, int const_expert_num=0, int? y_dtype=None, int? x_dtype=None, int? scales_dtype=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def npu_moe_distribute_dispatch_v2(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    x_active_mask: torch.Tensor | None,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    quant_mode: int,
    global_bs: int,
    expert_token_nums_type: int,
    comm_alg: str,
) -> tuple[torch.Tensor, ...]:
    """Sends each token to the ranks of the experts that it chose.

    Args:
        x: ``[T, H]``; with `global_bs` 0, T is the same on all ranks.
        x_active_mask: bool ``[T]``; the tokens after the active ones stay here.
        quant_mode: `UNQUANTISED`, or `DYNAMIC`: rows travel as int8, see `quantised` (aclnnMoeDistributeDispatchV2).

    Returns the rows that arrived ``[capacity, H]``, sorted by expert, then by rank of origin (0 where none arrived;
    undefined on a device); if they were quantised, their scales, float32 ``[capacity]``, else nothing; what combine
    needs, int32; the rows of each expert of this rank, int64; the rows received up to each expert and rank, int32
    ``[experts here * ranks]``; nothing; nothing.
    """
    _check_tensor_parallel(tp_world_size, tp_rank_id)
    check(expert_token_nums_type in (CUMULATIVE, COUNTS), "expert_token_nums_type", f"{expert_token_nums_type}")
    call = _exchange(expert_ids, x_active_mask, group_ep, ep_world_size, ep_rank_id, moe_expert_num, comm_alg)
    tokens, choices = expert_ids.shape
    check(x.dim() == 2 and len(x) == tokens, "x", f"[{tokens}, H], not {tuple(x.shape)}")
    check(x.dtype in (torch.bfloat16, torch.float16, torch.float32), "x", f"{x.dtype} is not emulated")
    right = global_bs == 0 or (global_bs % ep_world_size == 0 and global_bs >= tokens * ep_world_size)
    check(right, "global_bs", f"0, or a multiple of {ep_world_size} for at least {tokens} tokens a rank: {global_bs}")
    check(quant_mode in (UNQUANTISED, DYNAMIC), "quant_mode", f"0 and 2 are emulated, not {quant_mode}")
    call.all_agree([0 if global_bs else tokens, x.shape[1], choices, moe_expert_num, global_bs])

    counts = call.counts()
    received = call.swap(counts, [1] * ep_world_size, [1] * ep_world_size)  # [rank of origin, experts here]
    splits = counts.sum(1).tolist(), received.sum(1).tolist()
    token_of = call.sent() // choices
    x, scale = (x, None) if quant_mode == UNQUANTISED else quantised(x)
    arrived = call.swap(x[token_of], *splits)
    expert_of = torch.arange(call.experts_here).repeat(ep_world_size).repeat_interleave(received.reshape(-1))
    order = expert_of.argsort(stable=True)
    capacity = (global_bs or tokens * ep_world_size) * min(call.experts_here, choices)
    rows = x.new_zeros(capacity, x.shape[1])
    rows[: len(order)] = arrived[order]
    nothing = scales = torch.empty(0)
    if scale is not None:
        scales = torch.zeros(capacity)
        scales[: len(order)] = call.swap(scale[token_of], *splits)[order]
    assist = torch.full((capacity, ASSIST_WORDS), -1, dtype=torch.int32)
    origin = torch.arange(ep_world_size).repeat_interleave(received.sum(1))
    assist[: len(order), 0] = origin[order].to(torch.int32)
    per_expert = received.sum(0)
    return (
        rows,
        scales,
        assist.view(-1),
        per_expert.cumsum(0) if expert_token_nums_type == CUMULATIVE else per_expert,
        received.t().reshape(-1).cumsum(0).to(torch.int32),
        nothing,
        nothing,
    )


@operator(
    "npu_moe_distribute_combine_v2(Tensor expand_x, Tensor expert_ids, Tensor assist_info_for_combine, "
    "Tensor ep_send_counts, Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? expand_scales=None, "
    "Tensor? shared_expert_x=None, Tensor? elastic_info=None, Tensor? ori_x=None, Tensor? const_expert_alpha_1=None, "
    "Tensor? const_expert_alpha_2=None, Tensor? const_expert_v=None, Tensor? performance_info=None, str group_tp='', "
    "int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
    "int shared_expert_rank_num=0, int global_bs=0, int comm_quant_mode=0, str comm_alg='', int zero_expert_num=0, "
    "int copy_expert_num=0, int const_expert_num=0) -> Tensor"
)
def npu_moe_distribute_combine_v2(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    assist_info_for_combine: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    tp_send_counts: torch.Tensor | None,
    x_active_mask: torch.Tensor | None,
    expand_scales: torch.Tensor | None,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    global_bs: int,
    comm_alg: str,
) -> torch.Tensor:
    """Sends the experts' results back, and sums each token's, weighted with `expert_scales`, float32 ``[T, K]``.

    The other arguments are those of the dispatch and what it returned. Returns ``[T, H]``; a token that was not
    active, undefined on a device, is 0.
    """
    _check_tensor_parallel(tp_world_size, tp_rank_id)
    call = _exchange(expert_ids, x_active_mask, group_ep, ep_world_size, ep_rank_id, moe_expert_num, comm_alg)
    tokens, choices = expert_ids.shape
    right = expert_scales.dtype == torch.float32 and expert_scales.shape == expert_ids.shape
    check(right, "expert_scales", f"float32 {tuple(expert_ids.shape)}, not {expert_scales.dtype}")
    unused = expand_scales is None or expand_scales.numel() == 0
    check(unused, "expand_scales", "only what the dispatch returned")
    right = tp_send_counts is None or tp_send_counts.numel() == 0 or tp_send_counts.dtype == torch.int32
    check(right, "tp_send_counts", "int32; counts nothing, as there is one rank of tensor parallelism")
    groups = call.experts_here * ep_world_size
    right = ep_send_counts.dtype == torch.int32 and tuple(ep_send_counts.shape) == (groups,)
    check(right, "ep_send_counts", f"int32 [{groups}], not {ep_send_counts.dtype} {tuple(ep_send_counts.shape)}")
    back = int(ep_send_counts[-1])
    check(
        expand_x.dim() == 2 and back <= len(expand_x), "expand_x", f"{tuple(expand_x.shape)}, but {back} rows arrived"
    )
    right = assist_info_for_combine.numel() == len(expand_x) * ASSIST_WORDS
    check(right, "assist_info_for_combine", f"{assist_info_for_combine.numel()} words for {len(expand_x)} rows")
    origin = assist_info_for_combine.view(-1, ASSIST_WORDS)[:back, 0].long()
    splits = torch.bincount(origin, minlength=ep_world_size).tolist(), call.counts().sum(1).tolist()
    arrived = call.swap(expand_x[:back][origin.argsort(stable=True)], *splits)
    each = torch.zeros(tokens * choices, expand_x.shape[1])
    each[call.sent()] = arrived.float()
    weighted = each.view(tokens, choices, -1) * expert_scales[..., None]
    return weighted.sum(1).to(expand_x.dtype)
