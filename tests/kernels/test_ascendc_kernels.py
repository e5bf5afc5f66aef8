"""The AscendC kernels of csrc/ascendc, compiled unchanged and run under emulation, against the torch reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulation.ascendc.launch import CoreCounters, EmulatedKernels, NanRule, reads, updates, writes
from fixtures.gating_cases import RELATIVE, GatingCase, check_gating, gating_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ascendc_tiling import (
    ASCENDC,
    ROW_BY_ROW,
    TABLE_IN_UB,
    RefusedTilingError,
    tile_gating_reroute,
    tile_reroute,
)

from weave_ops import gating_reference, reference


@functools.cache
def kernels(name: str) -> EmulatedKernels:
    return EmulatedKernels(ASCENDC / name / "op_kernel" / f"{name}.cpp")


def random_ints(high: int, *shape: int, dtype: torch.dtype = torch.int32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def run_reroute(
    ids: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, cores: int, key: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`out` may be `ids`, for the form in place."""
    tiling = tile_reroute(*ids.shape, *table.shape, wide_ids=ids.dtype is torch.int64, cores=cores)
    assert tiling.key == key
    out = torch.empty_like(ids) if out is None else out
    written = updates(out) if out is ids else writes(out)
    counters = kernels("reroute").launch(
        "weave_reroute", tiling.cores, reads(ids), reads(slots), reads(table), written, tiling
    )
    assert all(core.ub_bytes == tiling.ub_bytes for core in counters)
    return out


REROUTE_SHAPES = {
    "one token": (1, 8, 5, 64, 4, ROW_BY_ROW),
    "one more than a tile": (257, 8, 5, 64, 1, TABLE_IN_UB),
    "one more than a tile, row by row": (257, 2, 65, 1024, 1, ROW_BY_ROW),
    "cores with unequal shares": (203, 6, 5, 100, 3, TABLE_IN_UB),
    "a large map": (70, 8, 65, 512, 1, TABLE_IN_UB),
    "one id a token": (300, 1, 21, 256, 2, TABLE_IN_UB),
    "sixteen ids a token": (50, 16, 21, 160, 2, TABLE_IN_UB),
    "few tokens a core": (40, 8, 21, 250, 3, ROW_BY_ROW),
    "a number of ids whose reciprocal is rounded down": (70, 41, 3, 37, 2, TABLE_IN_UB),
    "many ids a token": (70, 333, 3, 37, 2, TABLE_IN_UB),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", REROUTE_SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_reroute_is_the_reference(shape: str, dtype: torch.dtype, in_place: bool) -> None:
    tokens, top_k, map_rows, experts, cores, key = REROUTE_SHAPES[shape]
    ids = random_ints(experts, tokens, top_k, dtype=dtype)
    slots = random_ints(map_rows, tokens + 7, seed=1)
    table = random_ints(2**31 - 1, map_rows, experts, seed=2)
    expected = reference.reroute(ids, slots, table)
    assert torch.equal(run_reroute(ids, slots, table, cores, key, ids if in_place else None), expected)


def test_reroute_writes_each_token_once_whatever_their_number() -> None:
    """Memory that two cores write, or that none does, is a violation, or not the reference."""
    table = random_ints(1000, 3, 32)
    for tokens in (*range(1, 70), 255, 256, 257, 511, 512, 513, 769):
        ids, slots = random_ints(32, tokens, 3, seed=tokens), random_ints(3, tokens, seed=tokens + 1)
        key = tile_reroute(tokens, 3, 3, 32, cores=3).key
        assert torch.equal(run_reroute(ids, slots, table, 3, key), reference.reroute(ids, slots, table)), tokens


def test_reroute_of_65536_tokens() -> None:
    ids, slots, table = random_ints(64, 65536, 6), random_ints(5, 65536, seed=1), random_ints(999, 5, 64, seed=2)
    assert torch.equal(run_reroute(ids, slots, table, 40, TABLE_IN_UB), reference.reroute(ids, slots, table))


def launch_gating(case: GatingCase, cores: int) -> tuple[torch.Tensor, torch.Tensor, Any, list[CoreCounters]]:
    """Weights, ids, tiling, counters. Lays tensors out as the host does: contiguous."""
    tokens, experts = case.logits.shape
    tiling = tile_gating_reroute(
        tokens, experts, case.top_k, case.expert_map.shape[0], n_group=case.n_group, topk_group=case.topk_group,
        logits=str(case.logits.dtype).removeprefix("torch."), scoring=case.scoring,
        biased=case.correction_bias is not None, renormalize=case.renormalize, scale=case.routed_scaling_factor,
        cores=cores,
    )  # fmt: skip
    weights, ids = torch.empty(tokens, case.top_k), torch.empty(tokens, case.top_k, dtype=torch.int32)
    bias = torch.zeros(1) if case.correction_bias is None else case.correction_bias
    counters = kernels("gating_reroute").launch(
        "weave_gating_reroute", tiling.cores, reads(case.logits.contiguous()), reads(bias.contiguous()),
        reads(case.token_slots), reads(case.expert_map), writes(weights), writes(ids), tiling,
    )  # fmt: skip
    assert all(core.ub_bytes == tiling.ub_bytes for core in counters)
    return weights, ids, tiling, counters


def gating_operator(cores: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def operator(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        case = GatingCase(*arguments)
        if len(case.logits) == 0:  # the host starts no kernel for it
            return torch.empty(0, case.top_k), torch.empty(0, case.top_k, dtype=torch.int32)
        return launch_gating(case, cores)[:2]

    return operator


def distinct_logits(tokens: int, experts: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Eighths: equal or far enough apart that all correct implementations rank them alike."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, experts, generator=generator) * 32).round().clamp(-60, 60).div(8).to(dtype)


def case_of(
    tokens: int,
    experts: int,
    top_k: int,
    map_rows: int,
    dtype: torch.dtype = torch.float32,
    *,
    scoring: str = "softmax",
    renormalize: bool = True,
    biased: bool = False,
    groups: tuple[int, int] = (1, 1),
    scale: float = 1.0,
) -> GatingCase:
    bias = random_ints(1000, experts, seed=3).float().sub(500).div(1024) if biased else None
    slots, table = random_ints(map_rows, tokens + 5, seed=1), random_ints(2**31 - 1, map_rows, experts, seed=2)
    logits = distinct_logits(tokens, experts, dtype)
    return GatingCase(logits, bias, top_k, scoring, renormalize, *groups, scale, slots, table)


def compare(case: GatingCase, cores: int, key: int | None = None) -> None:
    """Ids bit by bit, weights within RELATIVE."""
    weights, ids, tiling, _ = launch_gating(case, cores)
    meant, rows = gating_reference.gating_reroute(*case.arguments())
    assert key is None or tiling.key == key
    wrong = (ids != rows).any(dim=1).nonzero().flatten().tolist()
    assert not wrong, f"token {wrong[0]}: {ids[wrong[0]].tolist()}, expected {rows[wrong[0]].tolist()}"
    torch.testing.assert_close(weights, meant, rtol=RELATIVE, atol=0, equal_nan=True)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
V2, V3 = (8, 3), (8, 4)
GATING_CASES = {
    "one token": (case_of(1, 64, 8, 5), 4, ROW_BY_ROW),
    "one token, table": (case_of(1, 64, 8, 1), 4, TABLE_IN_UB),
    "one more than a tile": (case_of(41, 64, 6, 5), 1, TABLE_IN_UB),
    "cores with unequal shares": (case_of(131, 64, 8, 5, BF16), 3, TABLE_IN_UB),
    "128 experts": (case_of(90, 128, 8, 21, BF16), 2, TABLE_IN_UB),
    "160 experts, padded": (case_of(50, 160, 6, 21, BF16, renormalize=False, scale=16.0), 2, TABLE_IN_UB),
    "256 experts": (case_of(50, 256, 8, 21, F16), 2, TABLE_IN_UB),
    "256 experts, 64 adapters": (case_of(140, 256, 8, 65), 2, TABLE_IN_UB),
    "512 experts": (case_of(20, 512, 10, 5, BF16), 2, TABLE_IN_UB),
    "512 experts, row by row": (case_of(90, 512, 8, 65), 1, ROW_BY_ROW),
    "one chosen": (case_of(60, 64, 1, 5), 2, TABLE_IN_UB),
    "two chosen of eight": (case_of(60, 8, 2, 5, F16), 2, TABLE_IN_UB),
    "two chosen of eight, row by row": (case_of(20, 8, 2, 65, BF16), 2, ROW_BY_ROW),
    "all chosen of three": (case_of(9, 3, 3, 2), 1, TABLE_IN_UB),
    "sixteen chosen": (case_of(60, 160, 16, 5), 2, TABLE_IN_UB),
    "sigmoid": (case_of(60, 100, 8, 5, F16, scoring="sigmoid"), 2, TABLE_IN_UB),
    "sigmoid, bias": (case_of(60, 256, 16, 5, scoring="sigmoid", biased=True), 2, TABLE_IN_UB),
    "softmax, bias, padded": (case_of(60, 100, 8, 5, biased=True, scale=2.5), 2, TABLE_IN_UB),
    "deepseek v2": (case_of(60, 160, 6, 21, BF16, groups=V2, renormalize=False, scale=16.0), 2, TABLE_IN_UB),
    "deepseek v3": (
        case_of(60, 256, 8, 21, BF16, groups=V3, biased=True, scoring="sigmoid", scale=2.5),
        2,
        TABLE_IN_UB,
    ),
    "small groups": (case_of(33, 64, 6, 5, groups=(8, 3)), 2, TABLE_IN_UB),
    "sixteen groups": (case_of(33, 512, 8, 5, groups=(16, 2)), 2, TABLE_IN_UB),
    "groups, not a power of two": (case_of(33, 96, 6, 65, F16, groups=(3, 2)), 2, ROW_BY_ROW),
    "large groups": (case_of(33, 512, 8, 65, groups=(2, 1), biased=True), 2, ROW_BY_ROW),
    "groups of 64, bias": (case_of(33, 384, 8, 5, groups=(6, 2), biased=True, scoring="sigmoid"), 1, TABLE_IN_UB),
    "groups that change nothing": (case_of(33, 64, 8, 5, groups=(64, 64)), 2, TABLE_IN_UB),
}


@pytest.mark.parametrize("name", GATING_CASES)
def test_gating_is_the_reference(name: str) -> None:
    compare(*GATING_CASES[name])


def test_gating_writes_each_token_once_whatever_their_number() -> None:
    for tokens in (*range(1, 34), 63, 64, 65, 119, 120, 121):
        compare(case_of(tokens, 64, 3, 2), 3)


def test_gating_of_65536_tokens() -> None:
    compare(case_of(65536, 64, 6, 5, BF16), 40, TABLE_IN_UB)


@settings(max_examples=60, deadline=None)
@given(gating_cases(most_tokens=40), st.integers(1, 3), st.sampled_from([NanRule.HIGHEST, NanRule.LOWEST]))
def test_gating_has_every_setting_of_the_schema(case: GatingCase, cores: int, rule: NanRule) -> None:
    """Also NaN and infinite logits, whatever Max and the reductions make of a NaN; Sort32 sees none."""
    with kernels("gating_reroute").nan(rule):
        try:
            check_gating(case, gating_operator(cores))
        except RefusedTilingError as refused:
            assert "exceed 512 columns" in str(refused) or case.logits.shape[1] > 512


@pytest.mark.parametrize("rule", [NanRule.HIGHEST, NanRule.LOWEST])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nan_and_infinite_logits_are_the_reference(rule: NanRule, dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    for scoring, biased, groups in (
        ("softmax", False, (1, 1)), ("softmax", True, (4, 2)), ("softmax", False, (4, 2)),
        ("sigmoid", False, (1, 1)), ("sigmoid", True, (1, 1)), ("sigmoid", True, (4, 2)),
    ):  # fmt: skip
        case = case_of(8, 64, 6, 3, dtype, scoring=scoring, biased=biased, groups=groups)
        case.logits[0, 50] = nan
        case.logits[1, 9] = inf
        case.logits[2, :] = -inf
        case.logits[3, 5:] = -inf
        case.logits[4, [3, 17, 40, 60]] = nan
        case.logits[5, 20] = -inf
        case.logits[6, [2, 31]] = torch.tensor([nan, inf], dtype=dtype)
        with kernels("gating_reroute").nan(rule):
            compare(case, 1)


def test_a_bias_of_minus_infinity_puts_an_expert_last_in_the_order_of_the_reference() -> None:
    inf = float("inf")
    for groups, top_k, disabled in (((1, 1), 8, slice(5, 56)), ((4, 2), 8, slice(3, 57)), ((4, 2), 16, slice(15, 60))):
        case = case_of(20, 60, top_k, 3, scoring="sigmoid", biased=True, groups=groups)
        assert case.correction_bias is not None
        case.correction_bias[disabled] = -inf
        compare(case, 1)


def test_a_group_of_one_nan_and_disabled_experts_is_the_best_group() -> None:
    case = case_of(5, 60, 8, 3, scoring="sigmoid", biased=True, groups=(4, 2))
    assert case.correction_bias is not None
    case.correction_bias[31:45] = -float("inf")
    case.logits[:, 30] = float("nan")
    compare(case, 1)


def test_of_equal_scores_the_lower_id_comes_first() -> None:
    for groups in ((1, 1), (8, 3)):
        case = case_of(20, 160, 8, 3, groups=groups)
        case.logits[:10] = 0
        case.logits[10:] = case.logits[10:].sign()
        compare(case, 1)
