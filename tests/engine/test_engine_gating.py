"""Gating in vLLM's own routers: where one operator may do it and the rerouting together, and that both ways agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.model_loading import Load
from fixtures.tiny_models import EXPERTS
from fixtures.token_slots import fill

from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm.build import build_bank
from npu_weave.engine.vllm.fused_gating import equals_engine, fusable_gating, gating_of
from npu_weave.engine.vllm.moe_layer import VllmMoELayer, find_moe_layers
from npu_weave.experts.routing import LayerRouting
from npu_weave.experts.token_slots import TokenSlots

pytestmark = pytest.mark.engine

CPU = torch.device("cpu")
TOKENS = 200
KINDS = ["qwen3_moe", "olmoe", "mixtral", "deepseek_v2", "deepseek_v3"]


@pytest.fixture(scope="module", params=KINDS)
def layers(request: pytest.FixtureRequest, load: Load, families: Any) -> list[VllmMoELayer]:
    return find_moe_layers(*load(families(request.param, 2).base))


def router_of(layer: VllmMoELayer) -> Any:
    return layer._runner.router


def own_gating(router: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = router._compute_routing(logits, logits, torch.int32)
    return weights, ids


def test_the_settings_are_those_of_the_router(layers: list[VllmMoELayer]) -> None:
    """In float32, and up to order and rounding, the operator with these settings answers as vLLM's router does."""
    router, experts = router_of(layers[-1]), layers[-1].num_experts
    gating = gating_of(router)
    assert gating is not None
    logits = torch.randn(TOKENS, experts, generator=torch.Generator().manual_seed(1))
    weights, ids = gating.gate(
        logits, torch.zeros(TOKENS, dtype=torch.int32), torch.arange(experts, dtype=torch.int32)[None]
    )
    meant, meant_ids = own_gating(router, logits)
    order, meant_order = ids.argsort(dim=1), meant_ids.argsort(dim=1)
    assert torch.equal(ids.gather(1, order), meant_ids.gather(1, meant_order))
    torch.testing.assert_close(weights.gather(1, order), meant.gather(1, meant_order), rtol=1e-5, atol=0)


def test_on_a_cpu_vllms_own_gating_stays(layers: list[VllmMoELayer]) -> None:
    """vLLM's order of experts there, and its choice among equals, are those of an unsorted torch.topk."""
    router, experts = router_of(layers[-1]), layers[-1].num_experts
    gating = gating_of(router)
    assert gating is not None and not equals_engine(router, gating, experts, CPU, torch.bfloat16)
    assert fusable_gating(router, experts, CPU, torch.bfloat16) is None


def answer_as_the_operator(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router with the operator's order and ties: what the operator may take the place of."""
    gating = gating_of(router)
    assert gating is not None

    def compute(hidden: Any, logits: torch.Tensor, indices: Any, *, input_ids: Any = None) -> Any:
        slots = torch.zeros(len(logits), dtype=torch.int32)
        base = torch.arange(logits.shape[1], dtype=torch.int32)[None]
        return gating.gate(logits, slots, base)

    monkeypatch.setattr(router, "_compute_routing", compute)


@pytest.mark.parametrize("fused", [False, True], ids=["gating, then rerouting", "one operator"])
def test_tokens_go_to_the_rows_of_their_slots(
    fused: bool, load: Load, families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = find_moe_layers(*load(families("qwen3_moe", 2).base))[-1]
    router = router_of(layer)
    if fused:
        answer_as_the_operator(router, monkeypatch)
    bank = build_bank([layer], WeaveConfig(adapter_rows=4), slots=2, device=torch.device("cpu"))
    table = bank.layers[layer.index].map.table
    table[2, [1, 5]] = torch.tensor([EXPERTS, EXPERTS + 3], dtype=torch.int32)
    slots = TokenSlots(2 * TOKENS, CPU)
    layer.insert_routing(LayerRouting(bank.layers[layer.index], slots))
    assert layer.gating_is_fused == fused
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(2)).bfloat16()
    slot_of_token = torch.arange(TOKENS, dtype=torch.int32) % 3
    fill(slots, slot_of_token.tolist())
    meant, ids = own_gating(router, logits)
    weights, rows = router.select_experts(logits, logits)
    assert torch.equal(weights, meant)
    assert torch.equal(rows, table[slot_of_token[:, None].long(), ids.long()])
    assert (rows >= EXPERTS).any() and bool((rows[slot_of_token < 2] < EXPERTS).all())


def test_whoever_wants_to_see_the_ids_gets_the_routers(
    load: Load, families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM can report routed experts: these are ids of experts, not rows, and only its own gating knows them."""
    layer = find_moe_layers(*load(families("qwen3_moe", 2).base))[-1]
    router = router_of(layer)
    answer_as_the_operator(router, monkeypatch)
    bank = build_bank([layer], WeaveConfig(adapter_rows=4), slots=2, device=torch.device("cpu"))
    bank.layers[layer.index].map.table[1] += 1
    slots = TokenSlots(2 * TOKENS, CPU)
    fill(slots, [1] * TOKENS)
    layer.insert_routing(LayerRouting(bank.layers[layer.index], slots))
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []
    router.set_capture_fn(seen.append)
    _, rows = router.select_experts(logits, logits)
    assert torch.equal(seen[0] + 1, rows)


@pytest.mark.parametrize("change", ["custom_routing_function", "capture_fn", "_hash_indices_table", "sqrtsoftplus"])
def test_what_the_operator_does_not_do_is_left_to_the_router(change: str, load: Load, families: Any) -> None:
    router = router_of(find_moe_layers(*load(families("qwen3_moe", 2).base))[0])
    if change == "sqrtsoftplus":
        router.scoring_func = change
    else:
        setattr(router, change, lambda *args: None)
    assert gating_of(router) is None


def test_a_single_bit_is_seen(load: Load, families: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    router = router_of(find_moe_layers(*load(families("qwen3_moe", 2).base))[0])
    gating = gating_of(router)
    assert gating is not None
    answer_as_the_operator(router, monkeypatch)
    assert equals_engine(router, gating, EXPERTS, CPU, torch.float32)
    same = router._compute_routing

    def almost(*args: Any, **how: Any) -> Any:
        weights, ids = same(*args, **how)
        weights.view(torch.int32)[7, 1] ^= 1
        return weights, ids

    monkeypatch.setattr(router, "_compute_routing", almost)
    assert not equals_engine(router, gating, EXPERTS, CPU, torch.float32)
