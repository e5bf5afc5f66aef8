"""Gating, routing and grouped products of the emulated torch_npu, against loops over tokens and experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given
from hypothesis import strategies as st
from torch_npu.strict import RefusedError

SEEDS = st.integers(0, 999)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ids_of(tokens: int, choices: int, experts: int, seed: int) -> torch.Tensor:
    """Different experts for each token."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(experts, generator=generator)[:choices] for _ in range(tokens)]
    return torch.stack(rows).to(torch.int32)


def chosen(scores: list[float], k: int, groups: int, kept: int, best: int) -> list[int]:
    """Experts of one token by the rule: the groups with the best sums of `best` scores, and there the best experts."""
    size = len(scores) // groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    worth = [sum(sorted((scores[e] for e in group), reverse=True)[:best]) for group in members]
    allowed = sorted(range(groups), key=lambda g: (-worth[g], g))[:kept]
    experts = [e for g in allowed for e in members[g]]
    return sorted(experts, key=lambda e: (-scores[e], e))[:k]


@given(SEEDS, st.sampled_from([(1, 1), (4, 2), (2, 1)]), st.booleans(), st.booleans(), st.booleans())
def test_gating(seed: int, grouping: tuple[int, int], sigmoid: bool, biased: bool, normed: bool) -> None:
    groups, kept = grouping
    # logits of few values, so that there are ties to break
    logits = torch.randint(-3, 4, (3, 16), generator=torch.Generator().manual_seed(seed)) / 2
    bias = random(16, seed=seed + 1) if biased else None
    weights, ids, scores = torch_npu.npu_moe_gating_top_k(
        logits, 4, bias=bias, k_group=kept, group_count=groups, group_select_mode=int(biased), renorm=int(normed),
        norm_type=int(sigmoid), out_flag=True, routed_scaling_factor=2.5,
    )  # fmt: skip
    expected = logits.sigmoid() if sigmoid else logits.softmax(-1)
    torch.testing.assert_close(scores, expected)
    for row in range(3):
        judged = scores[row] if bias is None else scores[row] + bias
        assert ids[row].tolist() == chosen(judged.tolist(), 4, groups, kept, 1 + int(biased))
        own = scores[row, ids[row].long()]
        torch.testing.assert_close(weights[row], own * 2.5 / (own.sum() if sigmoid or normed else 1))
    assert ids.dtype == torch.int32


def test_custom_gating_is_the_same() -> None:
    logits, bias = random(5, 16), random(16, seed=1)
    options = dict(k_group=2, group_count=4, group_select_mode=1, renorm=0, norm_type=1, out_flag=False)
    ours = torch.ops._C_ascend.moe_gating_top_k(
        logits, k=4, **options, routed_scaling_factor=1.5, eps=1e-20, bias_opt=bias
    )
    theirs = torch_npu.npu_moe_gating_top_k(logits, 4, bias=bias, **options, routed_scaling_factor=1.5)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


ROUTINGS: list[Callable[..., Any]] = [
    lambda *args, **named: torch_npu.npu_moe_init_routing_v2(*args, **named),
    lambda *args, **named: torch.ops._C_ascend.npu_moe_init_routing_custom(*args, **named),
]
COUNTED = {"expert_tokens_num_flag": True, "expert_tokens_num_type": 1, "quant_mode": -1}


@pytest.mark.parametrize("route", ROUTINGS)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.sampled_from([None, (0, 8), (2, 5), (7, 8)]))
def test_routing(
    route: Callable[..., Any], seed: int, tokens: int, choices: int, active: tuple[int, int] | None
) -> None:
    x, ids = random(tokens, 3, seed=seed), ids_of(tokens, choices, 8, seed)
    named = {} if active is None else {"active_expert_range": list(active)}
    rows, row_of, counts, _ = route(x, ids, expert_num=8, active_num=tokens * choices, **COUNTED, **named)
    first, end = active or (0, 8)
    order = sorted(
        (e, place) for place, e in enumerate(ids.reshape(-1).tolist()) if first <= e < end
    )  # by expert, then as they came
    assert torch.equal(rows[: len(order)], x[[place // choices for _, place in order]])
    assert not rows[len(order) :].any()
    expected = torch.full((tokens * choices,), -1)
    for row, (_, place) in enumerate(order):
        expected[place] = row
    assert row_of.tolist() == expected.tolist()
    assert counts.tolist() == [sum(e == expert for e, _ in order) for expert in range(first, end)]
    named |= COUNTED | {"expert_tokens_num_type": 0}
    assert route(x, ids, expert_num=8, **named)[2].tolist() == counts.cumsum(0).tolist()


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_permute_and_back(seed: int, tokens: int, choices: int) -> None:
    x, ids, weights = random(tokens, 3, seed=seed), ids_of(tokens, choices, 8, seed), random(tokens, choices, seed=seed)
    rows, row_of = torch_npu.npu_moe_token_permute(x, ids, num_out_tokens=tokens * choices)
    sorted_ids = [ids.reshape(-1)[row_of.tolist().index(row)].item() for row in range(tokens * choices)]
    assert sorted_ids == sorted(sorted_ids)
    back = torch_npu.npu_moe_token_unpermute(rows, row_of, probs=weights, restore_shape=x.shape)
    torch.testing.assert_close(back, x * weights.sum(1, keepdim=True), atol=1e-5, rtol=1e-5)
    flat, where = torch_npu.npu_moe_token_permute(x, ids[:, 0].contiguous())
    assert torch.equal(torch_npu.npu_moe_token_unpermute(flat, where), x)


@given(SEEDS, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 2), st.booleans())
def test_grouped_matmul(seed: int, counts: list[int], spare: int, biased: bool) -> None:
    x = random(sum(counts) + spare, 4, seed=seed)
    weight, bias = random(len(counts), 4, 3, seed=seed + 1), random(len(counts), 3, seed=seed + 2)
    weight[[i for i, count in enumerate(counts) if not count]] = math.nan  # of no use to anyone
    listed = torch.tensor(counts)
    results = [
        torch_npu.npu_grouped_matmul(
            [x], [weight], bias=[bias] if biased else None, group_list=groups, group_list_type=kind, split_item=2,
            group_type=0,
        )
        for kind, groups in ((1, listed), (0, listed.cumsum(0)))
    ]  # fmt: skip
    group_of = [expert for expert, count in enumerate(counts) for _ in range(count)]
    expected = torch.zeros(len(x), 3)
    for row, expert in enumerate(group_of):
        for column in range(3):
            expected[row, column] = sum(float(x[row, i] * weight[expert, i, column]) for i in range(4))
            expected[row, column] += float(bias[expert, column]) if biased else 0
    for (result,) in results:
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_grouped_matmul_rounds_once() -> None:
    x, weight = random(6, 64, dtype=torch.bfloat16), random(2, 64, 8, seed=1, dtype=torch.bfloat16)
    (result,) = torch_npu.npu_grouped_matmul(
        [x], [weight], group_list=torch.tensor([2, 4]), group_list_type=1, split_item=3, group_type=0
    )
    expected = torch.cat((x[:2].float() @ weight[0].float(), x[2:].float() @ weight[1].float()))
    assert torch.equal(result, expected.bfloat16())


def gate(**changed: Any) -> None:
    torch_npu.npu_moe_gating_top_k(**{"x": random(2, 8), "k": 2} | changed)


def route(**changed: Any) -> None:
    given = {"x": random(2, 4), "expert_idx": ids_of(2, 2, 8, 0), "expert_num": 8}
    torch_npu.npu_moe_init_routing_v2(**given | COUNTED | changed)


def multiply(counts: list[int], **changed: Any) -> None:
    given = {"x": [random(4, 3)], "weight": [random(2, 3, 5)], "group_list": torch.tensor(counts)}
    torch_npu.npu_grouped_matmul(**given | {"group_list_type": 1, "split_item": 2, "group_type": 0} | changed)


def unpermute(rows: list[int], **changed: Any) -> None:
    given = {"permuted_tokens": random(4, 3), "sorted_indices": torch.tensor(rows, dtype=torch.int32)}
    torch_npu.npu_moe_token_unpermute(**given | changed)


REFUSED: dict[str, Callable[[], None]] = {
    "k: 9 of 8 experts": lambda: gate(k=9),
    "k: 3 of 2 experts": lambda: gate(k=3, group_count=4),
    "group_count: 3 of 8": lambda: gate(group_count=3),
    "k_group: 1 to 1": lambda: gate(k_group=2),
    "group_select_mode: 1 needs groups of two": lambda: gate(group_count=8, k_group=8, group_select_mode=1),
    "norm_type: 0 and 1": lambda: gate(norm_type=2),
    "bias: torch.float32 [8]": lambda: gate(bias=random(7)),
    "x: at most 2048 experts": lambda: gate(x=random(1, 2049)),
    "tid2eid: only the default": lambda: gate(tid2eid=torch.zeros(1)),
    "expert_idx: outside 0..7: 0..8": lambda: route(expert_idx=torch.tensor([[0, 8], [1, 2]], dtype=torch.int32)),
    "expert_idx: outside 0..7: -1..2": lambda: route(expert_idx=torch.tensor([[0, -1], [1, 2]], dtype=torch.int32)),
    "expert_idx: int32 [2, K], not torch.int64": lambda: route(expert_idx=torch.tensor([[0], [1]])),
    "expert_idx: int32 [2, K]": lambda: route(expert_idx=ids_of(3, 2, 8, 0)),
    "expert_num: 1 to 10240": lambda: route(expert_num=10241),
    "active_num: 3, but there are 4": lambda: route(active_num=3),
    "active_expert_range: 4..9 of 8": lambda: route(active_expert_range=[4, 9]),
    "active_expert_range: 4..4": lambda: route(active_expert_range=[4, 4]),
    "expert_tokens_num_flag: only True": lambda: route(expert_tokens_num_flag=False),
    "drop_pad_mode: only the default": lambda: route(drop_pad_mode=1),
    "row_idx_type: 0": lambda: route(row_idx_type=1),
    "group_list: a group of -1 rows": lambda: multiply([3, -1]),
    "group_list: 5 rows in all, but x has 4": lambda: multiply([3, 2]),
    "group_list: int64 [2] like the weights": lambda: multiply([1, 1, 1]),
    "group_list: a group of -2 rows": lambda: multiply([3, 1], group_list_type=0),
    "group_list_type: 0 and 1": lambda: multiply([1, 1], group_list_type=2),
    "split_item: 2 and 3": lambda: multiply([1, 1], split_item=0),
    "group_type: 0": lambda: multiply([1, 1], group_type=2),
    "x: K 4, where the weight has 3": lambda: multiply([1, 1], x=[random(4, 4)]),
    "x: contiguous": lambda: multiply([1, 1], x=[random(3, 4).t()]),
    "weight: torch.float16, where x is": lambda: multiply([1, 1], weight=[random(2, 3, 5).half()]),
    "weight: one x and one weight": lambda: multiply([1, 1], weight=[random(2, 3, 5)] * 2),
    "weight: at most 1024 groups": lambda: multiply([1, 1], weight=[torch.empty(1025, 3, 5)]),
    "scale: only for int8": lambda: multiply([1, 1], scale=[random(2, 5)]),
    "per_token_scale: only for int8": lambda: multiply([1, 1], per_token_scale=[random(4)]),
    "output_dtype: torch.float32 like x": lambda: multiply([1, 1], output_dtype=torch.bfloat16),
    "act_type: only the default": lambda: multiply([1, 1], act_type=1),
    "weight: List[Tensor], not Tensor": lambda: multiply([1, 1], weight=random(2, 3, 5)),
    "sorted_indices: outside 0..3": lambda: unpermute([0, 4]),
    "sorted_indices: outside": lambda: unpermute([0, -1]),
    "probs: [T, K] with 2": lambda: unpermute([0, 1], probs=random(3, 1)),
    "restore_shape": lambda: unpermute([0, 1], restore_shape=[1, 6]),
    "num_out_tokens: 3, but there are 4": lambda: torch_npu.npu_moe_token_permute(
        random(2, 3), ids_of(2, 2, 8, 0), num_out_tokens=3
    ),
    "indices: integers [2, K]": lambda: torch_npu.npu_moe_token_permute(random(2, 3), random(2, 2)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refuses(said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        REFUSED[said]()
    assert said in str(refused.value)
