"""Tokens sent to the experts' ranks and back, in the emulated torch_npu, against all experts in one place.

A rank is a thread here, with a gloo group of its own: the operators know a group by its name only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_npu.collectives import group_named
from torch_npu.strict import RefusedError

T = TypeVar("T")
_groups = count()


def on_ranks(ranks: int, function: Callable[[int, str], T]) -> list[T]:
    """``function(rank, name of its group)`` on all ranks at once."""
    store, number = dist.HashStore(), next(_groups)

    def run(rank: int) -> T:
        named = dist.PrefixStore(f"group{number}", store)
        group = dist.ProcessGroupGloo(named, rank, ranks, timedelta(seconds=60))
        return function(rank, group.get_hccl_comm_name(rank))

    with ThreadPoolExecutor(ranks) as pool:
        return [job.result() for job in [pool.submit(run, rank) for rank in range(ranks)]]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids_of(tokens: int, choices: int, experts: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(experts, generator=generator)[:choices] for _ in range(tokens)]).to(torch.int32)


def dispatched(rank: int, name: str, x: torch.Tensor, ids: torch.Tensor, **changed: Any) -> tuple[torch.Tensor, ...]:
    given = {"ep_world_size": 2, "ep_rank_id": rank, "moe_expert_num": 6, "x_active_mask": None, "comm_alg": "fullmesh"}
    return torch_npu.npu_moe_distribute_dispatch_v2(x, ids, name, **given | changed)


def combined(rank: int, name: str, results: torch.Tensor, ids: torch.Tensor, **changed: Any) -> torch.Tensor:
    given = {"ep_world_size": 2, "ep_rank_id": rank, "moe_expert_num": 6, "x_active_mask": None}
    return torch_npu.npu_moe_distribute_combine_v2(expand_x=results, expert_ids=ids, group_ep=name, **given | changed)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 4), st.integers(0, 99), st.booleans())
def test_there_and_back(ranks: int, tokens: int, idle: int, seed: int, cumulative: bool) -> None:
    """Each expert multiplies by a matrix of its own; `idle` tokens of rank 0 are padding."""
    experts, choices = 2 * ranks, 2
    xs = [random(tokens, 3, seed=seed + r) for r in range(ranks)]
    ids = [ids_of(tokens, choices, experts, seed + r) for r in range(ranks)]
    scales = [random(tokens, choices, seed=seed + 10 + r) for r in range(ranks)]
    masks = [torch.arange(tokens) < (tokens - idle if r == 0 else tokens) for r in range(ranks)]
    weights = random(experts, 3, 5, seed=seed)

    def rank_of(rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        same = {"ep_world_size": ranks, "moe_expert_num": experts, "x_active_mask": masks[rank]}
        rows, _, assist, groups, counts, _, _ = dispatched(
            rank, name, xs[rank], ids[rank], expert_token_nums_type=int(not cumulative), **same
        )
        here = weights[2 * rank : 2 * rank + 2]
        (results,) = torch_npu.npu_grouped_matmul(
            [rows], [here], group_list=groups, group_list_type=int(not cumulative), split_item=2, group_type=0
        )
        back = combined(
            rank, name, results, ids[rank], assist_info_for_combine=assist, ep_send_counts=counts,
            expert_scales=scales[rank], **same,
        )  # fmt: skip
        return back, rows

    for rank, (back, rows) in enumerate(on_ranks(ranks, rank_of)):
        per_choice = torch.einsum("th,tkhn->tkn", xs[rank], weights[ids[rank].long()])
        expected = (per_choice * scales[rank][..., None]).sum(1) * masks[rank][:, None]
        torch.testing.assert_close(back, expected, atol=1e-5, rtol=1e-5)
        # by expert, then by rank of origin, then as the tokens were
        arrived = [
            xs[origin][token]
            for expert in (2 * rank, 2 * rank + 1)
            for origin in range(ranks)
            for token in range(tokens)
            if masks[origin][token] and expert in ids[origin][token]
        ]
        assert torch.equal(rows[: len(arrived)], torch.stack(arrived) if arrived else rows[:0])
        assert not rows[len(arrived) :].any()


def test_rows_travel_quantised() -> None:
    """They arrive as each rank would have quantised them itself, beside their scales."""
    xs = [random(3, 8, seed=rank).bfloat16() for rank in range(2)]
    ids = [ids_of(3, 2, 6, seed) for seed in range(2)]

    def rank_of(rank: int, name: str) -> tuple[torch.Tensor, ...]:
        plain = dispatched(rank, name, xs[rank], ids[rank])
        rows, scales, *rest = dispatched(rank, name, xs[rank], ids[rank], quant_mode=2)
        assert plain[1].numel() == 0
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest, plain[2:], strict=True))
        return plain[0], rows, scales

    for plain, rows, scales in on_ranks(2, rank_of):
        assert (rows.dtype, rows.shape, scales.dtype, scales.shape) == (torch.int8, plain.shape, torch.float32, (12,))
        torch.testing.assert_close(scales, plain.float().abs().amax(1) / 127)
        error = (rows.float() * scales[:, None] - plain.float()).abs()
        assert (error <= 0.5001 * scales[:, None]).all()
        assert rows.any()


def test_uneven_tokens_need_global_bs() -> None:
    def rank_of(rank: int, name: str) -> int:
        tokens = 1 + rank
        rows, *_ = dispatched(rank, name, random(tokens, 3, seed=0), ids_of(tokens, 2, 6, 0), global_bs=8)
        return len(rows)

    assert on_ranks(2, rank_of) == [16, 16]

    def without(rank: int, name: str) -> str:
        with pytest.raises(RefusedError) as refused:
            dispatched(rank, name, random(1 + rank, 3, seed=0), ids_of(1 + rank, 2, 6, 0))
        return str(refused.value)

    assert all("moe_expert_num: tokens, width, choices, experts differ" in said for said in on_ranks(2, without))


def test_ranks_must_agree_on_the_experts() -> None:
    def rank_of(rank: int, name: str) -> str:
        with pytest.raises(RefusedError) as refused:
            dispatched(rank, name, random(1, 3, seed=0), ids_of(1, 2, 6, 0), moe_expert_num=6 + 2 * rank)
        return str(refused.value)

    assert all("experts differ: [[1, 3, 2, 6, 0], [1, 3, 2, 8, 0]]" in said for said in on_ranks(2, rank_of))


X, IDS = random(2, 3, seed=0), ids_of(2, 2, 6, 0)
REFUSED: dict[str, Callable[[int, str], Any]] = {
    "expert_ids: outside 0..3": lambda r, n: dispatched(r, n, X, IDS % 2 + 3, moe_expert_num=4),
    "moe_expert_num: 5 do not divide over 2 ranks": lambda r, n: dispatched(r, n, X, IDS, moe_expert_num=5),
    "moe_expert_num: 1 to 1024, not 1026": lambda r, n: dispatched(r, n, X, IDS, moe_expert_num=1026),
    "expert_ids: int32": lambda r, n: dispatched(r, n, X, IDS.long()),
    "expert_ids: 1 to 512 tokens, not 513": lambda r, n: dispatched(r, n, X, IDS[:1].repeat(513, 1)),
    "x: [2, H]": lambda r, n: dispatched(r, n, X[:1], IDS),
    "x_active_mask: the active tokens must be the first": lambda r, n: dispatched(
        r, n, X, IDS, x_active_mask=torch.tensor([False, True])
    ),
    "x_active_mask: bool [2]": lambda r, n: dispatched(r, n, X, IDS, x_active_mask=torch.tensor([1, 1])),
    "group_ep: 'nobody' is not the name of a group": lambda r, n: dispatched(r, "nobody", X, IDS),
    "is not this rank": lambda r, n: dispatched(1 - r, n, X, IDS),
    "comm_alg": lambda r, n: dispatched(r, n, X, IDS, comm_alg="hierarchy"),
    "quant_mode: 0 and 2 are emulated, not 4": lambda r, n: dispatched(r, n, X, IDS, quant_mode=4),
    "scales: only the default": lambda r, n: dispatched(r, n, X, IDS, quant_mode=2, scales=X[:1]),
    "shared_expert_rank_num: only the default": lambda r, n: dispatched(r, n, X, IDS, shared_expert_rank_num=1),
    "tp_world_size: only 0 and 1": lambda r, n: dispatched(r, n, X, IDS, tp_world_size=2),
    "global_bs": lambda r, n: dispatched(r, n, X, IDS, global_bs=3),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refuses(said: str) -> None:
    def rank_of(rank: int, name: str) -> str:
        with pytest.raises(RefusedError) as refused:
            REFUSED[said](rank, name)
        return str(refused.value)

    assert all(said in answer for answer in on_ranks(2, rank_of))


def test_combine_refuses_what_the_dispatch_did_not_return() -> None:
    def rank_of(rank: int, name: str) -> None:
        rows, _, assist, _, counts, _, _ = dispatched(rank, name, X, IDS)
        right = {"assist_info_for_combine": assist, "ep_send_counts": counts, "expert_scales": torch.ones(2, 2)}
        for said, wrong in {
            "ep_send_counts: int32 [6]": {"ep_send_counts": counts.long()},
            "expert_scales: float32 (2, 2)": {"expert_scales": torch.ones(2, 2).half()},
            "assist_info_for_combine": {"assist_info_for_combine": assist[:-1]},
            "comm_quant_mode: only the default": {"comm_quant_mode": 2},
            "tp_send_counts: int32": {"tp_send_counts": torch.ones(1)},
            "expand_scales: only what": {"expand_scales": torch.ones(1)},
        }.items():
            with pytest.raises(RefusedError) as refused:
                combined(rank, name, rows, IDS, **right | wrong)
            assert said in str(refused.value)

    on_ranks(2, rank_of)


def test_group_names() -> None:
    with pytest.raises(KeyError):
        group_named("nobody")


GATHER = """
import os, sys, torch, torch_npu, torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("hccl", init_method=sys.argv[2], rank=rank, world_size=2)
mine = torch.full((1 + rank, 2), float(rank), device="npu")
received = [torch.empty(1, 2), torch.empty(2, 2)]
dist.all_gather(received, mine)
assert torch.equal(received[0], torch.zeros(1, 2)) and torch.equal(received[1], torch.ones(2, 2)), received
even = [torch.empty(2), torch.empty(2)]
dist.all_gather(even, torch.full((2,), float(rank)))
assert torch.equal(torch.cat(even), torch.tensor([0.0, 0.0, 1.0, 1.0]))
backend = dist.group.WORLD._get_backend(torch.device("npu"))
assert torch_npu.collectives.group_named(backend.get_hccl_comm_name(rank)) is backend
dist.destroy_process_group()
os._exit(0)  # an interpreter that ends while gloo's threads still do, as on a machine that is busy, is aborted
"""


def test_gathering_tensors_of_different_heights(tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'rendezvous'}"
    ranks = [
        subprocess.Popen([sys.executable, "-c", GATHER, str(rank), address], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in ranks:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()[-2000:]
