"""``gating_reroute``: reference and CPU kernel against routers of transformers, a loop that sorts, and each other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from fixtures.gating_cases import GatingCase, Operator, check_gating, gating_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from weave_ops import gating_reference

HIDDEN, TOKENS = 32, 257
PLAIN = {
    "correction_bias": None,
    "scoring": "softmax",
    "renormalize": True,
    "n_group": 1,
    "topk_group": 1,
    "scale": 1.0,
}


Gate = Callable[..., Any]


@pytest.fixture(scope="module", params=["reference", "kernel"])
def gate(request: pytest.FixtureRequest) -> Gate:
    """The operator with defaults for all but logits and top_k: one slot, whose rows are the expert ids."""
    forms: dict[str, Operator] = {
        "reference": gating_reference.gating_reroute,
        "kernel": torch.ops.npu_weave.gating_reroute,
    }

    def call(logits: torch.Tensor, top_k: int, slots: torch.Tensor | None = None, table: Any = None, **how: Any) -> Any:
        how = PLAIN | how
        slots = torch.zeros(logits.shape[0], dtype=torch.int32) if slots is None else slots
        table = torch.arange(logits.shape[-1], dtype=torch.int32)[None] if table is None else table
        return forms[request.param](
            logits, how["correction_bias"], top_k, how["scoring"], how["renormalize"], how["n_group"],
            how["topk_group"], how["scale"], slots, table,
        )  # fmt: skip

    return call


def deepseek_v2(method: str) -> tuple[Any, dict[str, Any]]:
    config = transformers.DeepseekV2Config(
        hidden_size=HIDDEN, n_routed_experts=64, num_experts_per_tok=6, n_group=8, topk_group=3, topk_method=method,
        routed_scaling_factor=16.0, norm_topk_prob=False,
    )  # fmt: skip
    groups = {"n_group": 8, "topk_group": 3} if method == "group_limited_greedy" else {}
    return DeepseekV2TopkRouter(config), {"renormalize": False, "scale": 16.0, **groups}


def deepseek_v3() -> tuple[Any, dict[str, Any]]:
    config = transformers.DeepseekV3Config(
        hidden_size=HIDDEN, n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    router = DeepseekV3TopkRouter(config)
    torch.nn.init.normal_(router.e_score_correction_bias, std=0.2)
    how = {"scoring": "sigmoid", "n_group": 8, "topk_group": 4, "scale": 2.5}
    return router, how | {"correction_bias": router.e_score_correction_bias}


ROUTERS = {
    "deepseek_v2, greedy": lambda: deepseek_v2("greedy"),
    "deepseek_v2, groups": lambda: deepseek_v2("group_limited_greedy"),
    "deepseek_v3": deepseek_v3,
    "qwen3_moe": lambda: (
        Qwen3MoeTopKRouter(
            transformers.Qwen3MoeConfig(hidden_size=HIDDEN, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True)
        ),
        {},
    ),
    "olmoe": lambda: (
        OlmoeTopKRouter(
            transformers.OlmoeConfig(hidden_size=HIDDEN, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False)
        ),
        {"renormalize": False},
    ),
    "mixtral": lambda: (
        MixtralTopKRouter(transformers.MixtralConfig(hidden_size=HIDDEN, num_local_experts=8, num_experts_per_tok=2)),
        {},
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_it_chooses_and_weighs_as_the_router_of_transformers(gate: Gate, name: str) -> None:
    torch.manual_seed(0)
    router, how = ROUTERS[name]()
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        logits, weights, ids = router(torch.randn(TOKENS, HIDDEN))
        ours, rows = gate(logits, ids.shape[1], **how)
    order = ids.argsort(dim=1)
    ranked = rows.argsort(dim=1)
    assert torch.equal(rows.gather(1, ranked).long(), ids.gather(1, order))
    torch.testing.assert_close(ours.gather(1, ranked), weights.gather(1, order).float(), rtol=2e-6, atol=0)
    assert (ours.dtype, rows.dtype) == (torch.float32, torch.int32)


def by_hand(
    row: list[float], bias: list[float] | None, top_k: int, scoring: str, renormalize: bool, groups: tuple[int, int]
) -> tuple[list[float], list[int]]:
    """One token, in float64 and plain Python."""
    n_group, topk_group = groups
    if scoring == "softmax":
        powers = [math.exp(value - max(row)) for value in row]
        scores = [power / sum(powers) for power in powers]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in row]
    choice = [score + (bias[i] if bias else 0.0) for i, score in enumerate(scores)]
    size = len(row) // n_group
    members = [list(range(group * size, (group + 1) * size)) for group in range(n_group)]
    worth = [sum(sorted((choice[i] for i in each), reverse=True)[: 2 if bias else 1]) for each in members]
    best = sorted(range(n_group), key=lambda group: (-worth[group], group))[:topk_group]
    allowed = [i for group in best for i in members[group]]
    chosen = sorted(allowed, key=lambda i: (-choice[i], i))[:top_k]
    weights = [scores[i] for i in chosen]
    return ([weight / sum(weights) for weight in weights] if renormalize else weights), chosen


@given(data=st.data())
def test_every_setting_is_what_it_says(gate: Gate, data: st.DataObject) -> None:
    """Logits are distinct eighths, far enough apart that float32 and float64 rank alike."""
    n_group = data.draw(st.sampled_from([1, 2, 4]))
    experts = n_group * data.draw(st.integers(2, 8))
    topk_group = data.draw(st.integers(1, n_group))
    top_k = data.draw(st.integers(1, topk_group * (experts // n_group)))
    scoring = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    renormalize, biased = data.draw(st.booleans()), data.draw(st.booleans())
    row = [value / 8 for value in data.draw(st.permutations(range(-24, 24)))[:experts]]
    bias = [value / 4 for value in data.draw(st.permutations(range(experts)))] if biased else None
    table = torch.tensor([list(range(experts)), data.draw(st.permutations(range(experts)))], dtype=torch.int32)
    slot = data.draw(st.integers(0, 1))
    weights, ids = gate(
        torch.tensor([row]), top_k, torch.tensor([slot, 99], dtype=torch.int32), table, scoring=scoring,
        renormalize=renormalize, n_group=n_group, topk_group=topk_group, scale=2.0,
        correction_bias=None if bias is None else torch.tensor(bias),
    )  # fmt: skip
    expected, chosen = by_hand(row, bias, top_k, scoring, renormalize, (n_group, topk_group))
    assert ids.tolist() == [[int(table[slot, i]) for i in chosen]]
    torch.testing.assert_close(weights[0].double(), 2 * torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=0)


def test_of_equal_scores_the_lower_id_comes_first_also_between_groups(gate: Gate) -> None:
    assert gate(torch.zeros(1, 12), 5)[1].tolist() == [[0, 1, 2, 3, 4]]
    assert gate(torch.zeros(1, 12), 5, n_group=4, topk_group=2)[1].tolist() == [[0, 1, 2, 3, 4]]
    tied = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 0.0]])
    assert gate(tied, 4)[1].tolist() == [[1, 3, 2, 4]]


def test_nan_and_infinite_logits(gate: Gate) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[0.0, nan, 1.0, 2.0], [0.0, inf, 1.0, 2.0], [0.0, -inf, 1.0, 2.0]])
    weights, ids = gate(logits, 2)
    assert weights[:2].isnan().all() and ids[:2].tolist() == [[0, 1], [0, 1]]
    assert ids[2].tolist() == [3, 2] and weights[2].isfinite().all()
    weights, ids = gate(logits, 2, scoring="sigmoid", renormalize=False)
    assert ids.tolist() == [[1, 3], [1, 3], [3, 2]]
    assert weights[0, 0].isnan() and weights[0, 1].isfinite() and float(weights[1, 0]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("experts", [64, 512])
def test_logits_of_any_dtype_and_stride_count_as_float32(gate: Gate, dtype: torch.dtype, experts: int) -> None:
    logits = torch.randn(experts, 33).to(dtype).t()
    weights, ids = gate(logits, 16)
    again, same = gate(logits.float().contiguous(), 16)
    assert torch.equal(weights, again) and torch.equal(ids, same)


def test_an_empty_batch(gate: Gate) -> None:
    weights, ids = gate(torch.empty(0, 8), 2)
    assert (weights.shape, ids.shape) == ((0, 2), (0, 2))


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"logits": torch.zeros(2, 8, dtype=torch.float64)}, TypeError),
        ({"logits": torch.zeros(8)}, ValueError),
        ({"top_k": 0}, ValueError),
        ({"top_k": 9}, ValueError),
        ({"scoring": "tanh"}, ValueError),
        ({"n_group": 3}, ValueError),
        ({"n_group": 2, "topk_group": 3}, ValueError),
        ({"n_group": 4, "topk_group": 1, "top_k": 3}, ValueError),
        ({"n_group": 8, "topk_group": 4, "correction_bias": torch.zeros(8)}, ValueError),
        ({"correction_bias": torch.zeros(7)}, ValueError),
        ({"correction_bias": torch.zeros(8, dtype=torch.float64)}, TypeError),
        ({"table": torch.zeros(1, 7, dtype=torch.int32)}, ValueError),
        ({"slots": torch.zeros(1, dtype=torch.int32)}, ValueError),
        ({"slots": torch.tensor([0, 1], dtype=torch.int32)}, IndexError),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(gate: Gate, how: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="reroute"):
        gate(**{"logits": torch.zeros(2, 8), "top_k": 2} | how)


def test_shapes_and_dtypes_are_known_without_values() -> None:
    """opcheck compares the meta function with the reference, and sees to it that torch.compile takes the operator."""
    logits = torch.randn(5, 16)
    slots, table = torch.zeros(5, dtype=torch.int32), torch.arange(16, dtype=torch.int32)[None]
    torch.library.opcheck(
        torch.ops.npu_weave.gating_reroute.default, (logits, None, 4, "softmax", True, 1, 1, 1.0, slots, table)
    )


@settings(max_examples=300, deadline=None)
@given(case=gating_cases())
def test_the_kernel_answers_as_the_reference(case: GatingCase) -> None:
    check_gating(case, torch.ops.npu_weave.gating_reroute)


CAPABILITIES = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}
EVERY_CAPABILITY = """
import sys, torch
from hypothesis import given, settings
sys.path.insert(0, sys.argv[1])
from fixtures.gating_cases import check_gating, gating_cases

@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=gating_cases())
def check(case):
    check_gating(case, torch.ops.npu_weave.gating_reroute)

check()
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_answers_as_the_reference(capability: str) -> None:
    """Each that the processor has, in a process of its own."""
    order = list(CAPABILITIES.values())
    best = torch.backends.cpu.get_cpu_capability()
    if order.index(CAPABILITIES[capability]) > order.index(best):
        pytest.skip(f"torch takes {capability} at its word, and this processor has {best} at most")
    done = subprocess.run(
        [sys.executable, "-c", EVERY_CAPABILITY, os.path.dirname(os.path.dirname(__file__))],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == CAPABILITIES[capability]


def test_many_tokens_on_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        generator = torch.Generator().manual_seed(7)
        logits = torch.randn(20_000, 64, generator=generator)
        slots = torch.randint(0, 21, (20_000,), generator=generator, dtype=torch.int32)
        table = torch.randint(0, 400, (21, 64), generator=generator, dtype=torch.int32)
        check_gating(
            GatingCase(logits, None, 6, "softmax", True, 1, 1, 1.0, slots, table), torch.ops.npu_weave.gating_reroute
        )
        slots[19_999] = slots[15_234] = 21
        with pytest.raises(IndexError, match="token 15234 has slot 21"):
            torch.ops.npu_weave.gating_reroute(logits, None, 6, "softmax", True, 1, 1, 1.0, slots, table)
    finally:
        torch.set_num_threads(threads)
