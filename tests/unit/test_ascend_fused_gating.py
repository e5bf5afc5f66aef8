"""When gating and rerouting become one operator on an NPU, and what is asked then. No NPU: both operators are ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from npu_weave.engine.ascend import fused_gating
from npu_weave.engine.ascend.fused_gating import FusedGate, gated, listen
from npu_weave.experts.gating import Gating

pytestmark = pytest.mark.engine

EXPERTS, TOP_K, TOKENS = 16, 4, 5
SETTINGS: dict[str, Any] = {
    "k": TOP_K, "k_group": 1, "group_count": 1, "group_select_mode": 1, "renorm": 1, "norm_type": 0, "out_flag": False,
    "routed_scaling_factor": 1.0, "eps": 1e-20, "bias_opt": None,
}  # fmt: skip
TABLE = torch.stack([torch.arange(EXPERTS), torch.arange(EXPERTS) + 100]).to(torch.int32)
SLOTS = torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)


class Own:
    """vllm-ascend's operator: as ours, but for `error` in the first weight of float32 logits."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.asked: list[int] = []

    def __call__(self, x: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.asked.append(len(x))
        gating = Gating(top_k=settings["k"], correction_bias=settings["bias_opt"])
        base = torch.arange(EXPERTS, dtype=torch.int32)[None]
        weights, ids = gating.gate(x, torch.zeros(len(x), dtype=torch.int32), base)
        if x.dtype == torch.float32:
            weights[0, 0] += self.error
        return weights.to(x.dtype), ids, torch.empty(0)


class Rows:
    """`Routing` with a table of two slots."""

    def gate(self, logits: torch.Tensor, gating: Gating, slots: torch.Tensor | None = None) -> tuple[Any, Any]:
        assert slots is not None
        return gating.gate(logits, slots, TABLE)


def gate() -> FusedGate:
    return FusedGate("layer", EXPERTS, Rows(), lambda tokens: SLOTS[:tokens])  # type: ignore[arg-type]


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_operators_become_one(dtype: torch.dtype) -> None:
    own, asked, given = Own(), gate(), logits(dtype)
    weights, ids, _ = own(given, **SETTINGS)
    own.asked.clear()
    chosen = asked.choose(own, given, SETTINGS)
    assert chosen is not None
    assert chosen[0].dtype == dtype and torch.equal(chosen[0], weights)
    assert torch.equal(chosen[1], ids + 100 * SLOTS[:, None])
    assert asked.gave(chosen[1]) and not asked.gave(chosen[1].clone())
    assert TOKENS not in own.asked, "the step itself went to vllm-ascend's operator"
    trials = len(own.asked)
    assert asked.choose(own, given, SETTINGS) is not None and len(own.asked) == trials, "tried again"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_difference_that_bfloat16_hides_keeps_them_apart(dtype: torch.dtype) -> None:
    own, asked = Own(error=2.0**-20), gate()
    assert torch.equal(own(logits(dtype), **SETTINGS)[1], Own()(logits(dtype), **SETTINGS)[1])
    assert asked.choose(own, logits(dtype), SETTINGS) is None
    assert not asked.gave(logits())


@pytest.mark.parametrize("change", [{"norm_type": 2}, {"out_flag": True}, {"renorm": 0}], ids=str)
def test_settings_that_ours_has_not_or_answers_otherwise(change: dict[str, Any]) -> None:
    assert gate().choose(Own(), logits(), SETTINGS | change) is None


def test_a_bias_counts_for_the_choice() -> None:
    bias = torch.linspace(-3, 3, EXPERTS)
    chosen = gate().choose(Own(), logits(), SETTINGS | {"bias_opt": bias})
    assert chosen is not None
    assert torch.equal(chosen[1] % 100, Own()(logits(), **SETTINGS | {"bias_opt": bias})[1])
    assert not torch.equal(chosen[1] % 100, Own()(logits(), **SETTINGS)[1])


def test_a_device_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Gating.served_on(torch.device("cpu")) and not Gating.served_on(torch.device("privateuseone"))
    monkeypatch.setattr(Gating, "served_on", staticmethod(lambda device: False))
    assert gate().choose(Own(), logits(), SETTINGS) is None


def test_asked_while_its_own_layer_computes_only() -> None:
    own, layer, other = Own(), object(), object()
    method = SimpleNamespace(apply=lambda *, layer: gated(own, logits(), SETTINGS)[1])
    listen(method, layer, gate())
    plain = gated(own, logits(), SETTINGS)[1]
    assert torch.equal(method.apply(layer=other), plain)
    assert torch.equal(method.apply(layer=layer), plain + 100 * SLOTS[:, None])
    assert torch.equal(gated(own, logits(), SETTINGS)[1], plain)
    assert fused_gating._asking is None
