"""What must hold of every plan: order of the designs, bounds on waste, more never needing less."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.plan import DESIGNS, PAGE_BYTES, Budget, NamedSets, Plan, largest, make_plan
from npu_weave.residency.plan_base import BaseCost, base_from_config
from npu_weave.residency.plan_settings import choose_settings

ROOM = Budget(1 << 50, 1.0, 0, 1)
EXPERTS = 12


@st.composite
def bases(draw: st.DrawFn) -> BaseCost:
    """Layers of 12 experts; rows from far below a page to several."""
    geometry = MoEGeometry(
        model_type="olmoe",
        num_layers=6,
        moe_layers=tuple(sorted(draw(st.sets(st.integers(0, 5), min_size=1)))),
        num_experts=EXPERTS,
        top_k=2,
        hidden_size=draw(st.integers(1, 4096)),
        moe_intermediate_size=draw(st.integers(1, 2048)),
        dtype=draw(st.sampled_from([torch.bfloat16, torch.float32])),
    )
    parts = {"attention": draw(st.integers(0, 1 << 34))}
    return BaseCost("any", "config", geometry, 1, parts, draw(st.integers(1, 1 << 20)), 1)


def expert_sets(base: BaseCost) -> st.SearchStrategy[ExpertSets]:
    ids = st.sets(st.integers(0, EXPERTS - 1), min_size=1).map(lambda found: tuple(sorted(found)))
    return st.dictionaries(st.sampled_from(base.geometry.moe_layers), ids, min_size=1)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    base = draw(bases())
    sets = draw(st.lists(expert_sets(base), min_size=1, max_size=5))
    kinds: list[NamedSets] = [(f"adapter{number}", each) for number, each in enumerate(sets)]
    return make_plan(base, kinds, ROOM, count=draw(st.integers(0, 12)))


@given(plans())
def test_more_adapters_never_need_less(plan: Plan) -> None:
    for design in DESIGNS:
        before, after = plan.outcome(design, plan.count), plan.outcome(design, plan.count + 1)
        assert after.weights_bytes >= before.weights_bytes
        assert after.kv_tokens <= before.kv_tokens
    assert plan.outcome("exact", plan.count + 1).weights_bytes > plan.outcome("exact", plan.count).weights_bytes


@given(plans(), st.data())
def test_an_adapter_that_tunes_more_never_needs_less(plan: Plan, data: st.DataObject) -> None:
    name, sets = plan.kinds[0]
    more = data.draw(expert_sets(plan.base))
    union = {layer: tuple(sorted({*sets.get(layer, ()), *more.get(layer, ())})) for layer in sets.keys() | more.keys()}
    larger = make_plan(plan.base, [(name, union), *plan.kinds[1:]], ROOM, count=plan.count)
    for design in DESIGNS:
        assert larger.outcome(design, plan.count).weights_bytes >= plan.outcome(design, plan.count).weights_bytes


@given(plans())
def test_pages_cost_less_than_one_for_each_weight_tensor_beyond_the_exact_need(plan: Plan) -> None:
    exact, mapped, padded, merged = (plan.outcome(design, plan.count).weights_bytes for design in DESIGNS)
    tensors = 2 * len(plan.base.geometry.moe_layers)
    assert exact <= mapped < exact + tensors * PAGE_BYTES
    assert exact <= padded
    assert merged >= plan.base.weights_bytes
    if plan.count == 0:
        assert exact == padded == merged == plan.base.weights_bytes


@given(plans())
def test_the_memory_to_set_covers_the_pages_and_not_much_more(plan: Plan) -> None:
    settings = choose_settings(plan)
    if plan.count == 0:
        assert settings is None
        return
    assert settings is not None
    assert settings.max_loras == plan.count
    added = plan.need(plan.count).paged_bytes - plan.need(0).paged_bytes
    tuned = sum(plan.rows(plan.count).values()) - EXPERTS * len(plan.base.geometry.moe_layers)
    # a row on its own in each of two tensors: not quite two pages beyond its bytes
    apart = tuned * (plan.base.geometry.expert_nbytes + 2 * 2 * PAGE_BYTES)
    assert added <= settings.adapter_memory_bytes <= max(PAGE_BYTES, apart)
    assert settings.kv_tokens <= plan.outcome("mapped", plan.count).kv_tokens


@given(plans(), st.integers(1, 1 << 36), st.integers(0, 1 << 33))
def test_a_larger_device_holds_no_fewer_adapters(plan: Plan, spare: int, more: int) -> None:
    least = plan.base.weights_bytes + plan.base.kv_token_bytes + spare
    small, large = (replace(plan, budget=replace(ROOM, memory_bytes=least + extra)) for extra in (0, more))
    for design in DESIGNS:
        assert small.most[design] <= large.most[design]
        if small.most[design]:
            assert small.outcome(design, small.most[design]).fits


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_search_finds_the_largest(fitting: int, most: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= fitting

    assert largest(fits, most) == min(fitting, most)
    assert all(1 <= count <= most for count in asked)
    assert len(asked) <= 20


@given(st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_ranks_together_hold_at_least_the_model(ranks: int, latent: bool) -> None:
    config = dict(
        model_type="deepseek_v2" if latent else "qwen3_moe", dtype="bfloat16", vocab_size=1001, hidden_size=64,
        intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, num_experts=6, num_experts_per_tok=2, first_k_dense_replace=1, mlp_only_layers=[0],
        n_shared_experts=1, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    whole, part = (base_from_config(config, title="x", ranks=number) for number in (1, ranks))
    assert whole.weights_bytes <= ranks * part.weights_bytes <= ranks * whole.weights_bytes
    assert ranks * part.expert_bytes == whole.expert_bytes
    assert whole.kv_token_bytes <= ranks * part.kv_token_bytes
