"""A plan against numbers by hand, against memory that is measured, and against an engine's own admission."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.config import config_from
from npu_weave.errors import CapacityError, ConfigError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.port import Routing
from npu_weave.memory.host import HostDriver
from npu_weave.memory.pool import PagePool
from npu_weave.residency.footprint import measure_footprint
from npu_weave.residency.footprint_source import FootprintSource
from npu_weave.residency.plan import DESIGNS, PAGE_BYTES, Budget, Design, NamedSets, Plan, make_plan
from npu_weave.residency.plan_base import BaseCost, base_from_config
from npu_weave.residency.plan_settings import EngineSettings, choose_settings
from npu_weave.residency.store import AdapterStore

MIB = 1 << 20
# Three layers, the first dense. One expert: w13 is [1024, 1024] in bf16, one page; w2 is [1024, 512], half a page.
CONFIG: dict[str, Any] = dict(
    model_type="deepseek_v2", dtype="bfloat16", vocab_size=1024, hidden_size=1024, intermediate_size=1024,
    moe_intermediate_size=512, num_hidden_layers=3, num_attention_heads=2, n_routed_experts=3, num_experts_per_tok=2,
    first_k_dense_replace=1, kv_lora_rank=448, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64,
    max_position_embeddings=100,
)  # fmt: skip
BASE = base_from_config(CONFIG, title="three small layers")
KINDS: tuple[NamedSets, ...] = (("first", {1: (0,), 2: (1, 2)}), ("second", {1: (2,)}))
TOKEN = 3 * 512 * 2  # bytes of KV cache


def budget(mebibytes: int, tokens: int = 100) -> Budget:
    """So much for weights and KV cache, nothing else."""
    return Budget(mebibytes * MIB, 1.0, 0, tokens)


def test_every_number_by_hand() -> None:
    plan = make_plan(BASE, KINDS, budget(128))
    shared = BASE.weights_bytes - 18 * MIB
    assert (plan.count, plan.e_max, plan.rows(2)) == (2, 2, {1: 5, 2: 5})
    # rows 3+3, 4+5, 5+5; w13 takes a page a row, w2 half a page a row, rounded up in each layer
    weights: dict[Design, list[int]] = {
        "exact": [18, 27, 30],
        "mapped": [20, 28, 32],
        "padded": [18, 30, 42],
        "merged": [18, 18, 36],
    }
    for design, mebibytes in weights.items():
        for count, experts in enumerate(mebibytes):
            found = plan.outcome(design, count)
            engines = 2 if (design, count) == ("merged", 2) else 1
            assert found.weights_bytes == engines * shared + experts * MIB
            assert found.left_bytes == 128 * MIB - found.weights_bytes
            assert found.kv_tokens == found.left_bytes // TOKEN
            assert found.fits
    assert plan.need(2).fragmentation == pytest.approx(42 / 30)


def test_utilization_and_overhead_come_off_the_device_and_every_engine_has_its_own() -> None:
    plan = make_plan(BASE, KINDS, Budget(100 * MIB, 0.75, 5 * MIB, 100))
    assert plan.outcome("mapped", 2).left_bytes == (75 - 5) * MIB - plan.outcome("mapped", 2).weights_bytes
    assert plan.outcome("merged", 2).left_bytes == (75 - 10) * MIB - 2 * BASE.weights_bytes
    assert plan.outcome("merged", 1).left_bytes == plan.outcome("exact", 0).left_bytes


def test_each_engine_of_merged_models_needs_its_own_cache() -> None:
    weights = 2 * make_plan(BASE, KINDS, budget(64)).base.weights_bytes
    for tokens, fits in ((2 * 100, True), (2 * 100 - 1, False)):
        found = make_plan(BASE, KINDS, Budget(weights + tokens * TOKEN, 1.0, 0, 100)).outcome("merged", 2)
        assert (found.kv_tokens, found.fits) == (tokens, fits)


def test_weights_that_do_not_fit_leave_no_cache() -> None:
    plan = make_plan(BASE, KINDS, budget(BASE.weights_bytes // MIB + 3))
    found = plan.outcome("padded", 2)
    assert (found.kv_tokens, found.fits) == (0, False)
    assert found.left_bytes < 0


def test_adapters_are_like_those_given_in_turn() -> None:
    plan = make_plan(BASE, KINDS, budget(64), count=5)
    assert [name for name, _ in plan.loaded] == ["first", "second", "first#2", "second#2", "first#3"]
    assert plan.rows(5) == {1: 3 + 5, 2: 3 + 6}
    assert make_plan(BASE, KINDS, budget(64), count=1).loaded == KINDS[:1]
    assert make_plan(BASE, KINDS, budget(64), count=0).loaded == ()


@pytest.mark.parametrize("mebibytes", [36, 47, 60, 83, 200])
def test_the_most_adapters_are_those_that_counting_up_finds(mebibytes: int) -> None:
    plan = make_plan(BASE, KINDS, budget(mebibytes))
    for design in DESIGNS:
        count = 0
        while plan.outcome(design, count + 1).fits:
            count += 1
        assert plan.most[design] == count, design
    assert make_plan(BASE, (), budget(mebibytes)).most == dict.fromkeys(DESIGNS, 0)


def test_the_base_fits_to_the_byte_or_not() -> None:
    least = BASE.weights_bytes + 100 * TOKEN
    assert make_plan(BASE, KINDS, Budget(least, 1.0, 0, 100)).outcome("exact", 0).kv_tokens == 100
    for short in (Budget(least - 1, 1.0, 0, 100), Budget(least, 1.0, 1, 100), Budget(least, 0.999, 0, 100)):
        with pytest.raises(CapacityError, match=f"PLAN_BASE_TOO_LARGE.*{BASE.weights_bytes} bytes of weights"):
            make_plan(BASE, KINDS, short)
    assert make_plan(BASE, KINDS, Budget(least - 1, 1.0, 0, 99)).most["exact"] == 0


@pytest.mark.parametrize(
    ("numbers", "thing"),
    [
        ((0, 0.9, 0, 1), "device memory"),
        ((-1, 0.9, 0, 1), "device memory"),
        ((MIB, 0.0, 0, 1), "memory utilization"),
        ((MIB, 1.01, 0, 1), "memory utilization"),
        ((MIB, float("nan"), 0, 1), "memory utilization"),
        ((MIB, 0.9, -1, 1), "overhead"),
        ((MIB, 0.9, 0, 0), "model length"),
    ],
)
def test_a_budget_without_sense(numbers: tuple[int, float, int, int], thing: str) -> None:
    with pytest.raises(ConfigError, match=f"PLAN_ARGUMENT. {thing}"):
        Budget(*numbers)


@pytest.mark.parametrize(
    ("kinds", "wishes"), [(KINDS, {"count": -1}), ((), {"count": 1}), (KINDS, {"e_max": 1}), ((), {"e_max": -1})]
)
def test_wishes_without_sense(kinds: Sequence[NamedSets], wishes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="PLAN_ARGUMENT"):
        make_plan(BASE, kinds, budget(64), **wishes)


def test_more_padding_on_request() -> None:
    wide = make_plan(BASE, KINDS, budget(64), e_max=3)
    assert wide.need(2).padded_bytes == 2 * (3 + 2 * 3) * 3 * MIB


def geometry_of(hidden: int, width: int, experts: int) -> BaseCost:
    config = CONFIG | dict(hidden_size=hidden, moe_intermediate_size=width, n_routed_experts=experts)
    return base_from_config(config, title="x")


def random_kinds(draw: random.Random, geometry: MoEGeometry, count: int) -> tuple[NamedSets, ...]:
    experts = range(geometry.num_experts)
    return tuple(
        (
            f"adapter{number}",
            {
                layer: tuple(sorted(draw.sample(experts, draw.randint(1, geometry.num_experts))))
                for layer in geometry.moe_layers
                if draw.random() < 0.9
            },
        )
        for number in range(count)
    )


@pytest.mark.parametrize(("hidden", "width", "experts"), [(1024, 512, 3), (256, 704, 8), (96, 40, 16), (640, 352, 5)])
def test_the_plan_is_what_is_measured(hidden: int, width: int, experts: int) -> None:
    """Adapters installed for real on the host driver, after each the plan's number of bytes and rows."""
    base = geometry_of(hidden, width, experts)
    kinds = random_kinds(random.Random(hidden), base.geometry, 4)
    plan = make_plan(base, kinds, budget(512))
    found = measure_footprint(FootprintSource("x", "adapters", base.geometry, kinds))
    assert found.layers == base.geometry.moe_layers
    assert len(found.steps) == 5
    for step in found.steps:
        weights = {design: plan.outcome(design, step.adapters).weights_bytes for design in DESIGNS}
        assert step.reading.driver_bytes == weights["mapped"] - base.shared_bytes
        assert step.reading.exact_bytes == weights["exact"] - base.shared_bytes
        assert step.reading.exact_bytes == sum(plan.rows(step.adapters).values()) * base.geometry.expert_nbytes
        assert step.measured.padded_bytes == weights["padded"] - base.shared_bytes


class _Layer:
    """`MoELayerPort` without an engine: random weights of a geometry."""

    row_limit: None = None

    def __init__(self, index: int, geometry: MoEGeometry) -> None:
        self.index, self.name, self.num_experts = index, f"layer {index}", geometry.num_experts
        self.geometry = geometry

    def weights(self) -> Mapping[str, torch.Tensor]:
        return random_weights(self.geometry, self.num_experts)

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        pass

    def insert_routing(self, routing: Routing) -> None:
        pass


def random_weights(geometry: MoEGeometry, experts: int) -> dict[str, torch.Tensor]:
    hidden, width = geometry.hidden_size, geometry.moe_intermediate_size
    return {
        "w13_weight": torch.randn(experts, 2 * width, hidden).to(geometry.dtype),
        "w2_weight": torch.randn(experts, hidden, width).to(geometry.dtype),
    }


def served_with(plan: Plan, settings: EngineSettings) -> AdapterStore:
    """A worker's store as an engine builds it from these settings."""
    given = config_from(_additional_config(settings))
    assert given is not None and given.adapter_memory is not None and given.adapter_rows is not None
    geometry = plan.base.geometry
    pool = PagePool(HostDriver(), plan.need(0).paged_bytes + given.adapter_memory)
    ports = [_Layer(index, geometry) for index in geometry.moe_layers]
    slots = settings.max_loras
    layers = [ExpertLayer(port, pool, adapter_rows=given.adapter_rows, slots=slots) for port in ports]
    return AdapterStore(ExpertBank(layers, pool, slots=slots))


def _additional_config(settings: EngineSettings) -> object:
    words = settings.arguments
    assert words[:3] == ("--enable-lora", "--max-loras", str(settings.max_loras))
    return json.loads(words[words.index("--additional-config") + 1])


@pytest.mark.parametrize(("hidden", "width", "experts"), [(1024, 512, 3), (256, 352, 8), (96, 40, 16)])
def test_an_engine_with_the_settings_holds_all_adapters_in_any_order(hidden: int, width: int, experts: int) -> None:
    draw = random.Random(width)
    base = geometry_of(hidden, width, experts)
    kinds = random_kinds(draw, base.geometry, 5)
    plan = make_plan(base, kinds, budget(512))
    settings = choose_settings(plan)
    assert settings is not None
    assert settings.max_loras == 5
    assert settings.adapter_rows == max(plan.rows(5).values()) - experts
    store = served_with(plan, settings)
    packed = {
        number: PackedAdapter(
            name,
            name,
            {layer: PackedLayer(ids, random_weights(base.geometry, len(ids))) for layer, ids in sets.items()},
        )
        for number, (name, sets) in enumerate(kinds)
    }
    for _ in range(20):
        number = draw.choice(list(packed))
        if number in store.staged:
            store.drop(number)
        else:
            store.stage(number, packed[number])
    for number in packed:
        if number not in store.staged:
            store.stage(number, packed[number])
    assert len(store.resident) == 5
    store.check_integrity()
    held = store.bank.pool.in_use * PAGE_BYTES
    assert plan.need(5).paged_bytes <= held <= plan.need(0).paged_bytes + settings.adapter_memory_bytes


def test_settings_leave_the_cache_that_they_say() -> None:
    plan = make_plan(BASE, KINDS, budget(64))
    settings = choose_settings(plan)
    assert settings is not None
    memory = settings.adapter_memory_bytes
    assert memory >= plan.need(2).paged_bytes - plan.need(0).paged_bytes
    left = 64 * MIB - plan.outcome("mapped", 0).weights_bytes - memory
    assert settings.kv_tokens == left // TOKEN


def test_settings_are_for_as_many_adapters_as_fit() -> None:
    roomy, tight = (make_plan(BASE, KINDS, budget(mebibytes), count=40) for mebibytes in (1000, 64))
    found = choose_settings(roomy)
    assert found is not None and found.max_loras == 40
    less = choose_settings(tight)
    assert less is not None
    assert 0 < less.max_loras <= tight.most["mapped"] < 40
    assert less.kv_tokens >= 100
    assert choose_settings(make_plan(BASE, (), budget(64))) is None
    none = make_plan(BASE, KINDS, Budget(BASE.weights_bytes + 2 * MIB + 100 * TOKEN, 1.0, 0, 100))
    assert none.most["mapped"] == 0
    assert choose_settings(none) is None


def test_adapters_in_the_last_page_of_the_base_still_need_a_setting() -> None:
    """Experts of a few KB: adapters take no further page, and `adapter_memory` must be positive all the same."""
    base = geometry_of(16, 8, 4)
    kinds: tuple[NamedSets, ...] = (("tiny", {1: (0,)}),)
    settings = choose_settings(make_plan(base, kinds, budget(64)))
    assert settings is not None
    assert settings.adapter_memory_bytes == PAGE_BYTES
    assert config_from(_additional_config(settings)) is not None
