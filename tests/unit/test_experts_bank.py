"""Layers and bank over real pages: weights move in, adapters go in and out, bytes are right all along."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    EXPERTS,
    LAYERS,
    PAGE,
    SHAPES,
    PlainLayer,
    base_weights,
    bits,
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
    pages_of_live_rows,
    pages_under,
)
from fixtures.spoiled_rows import spoil_rows
from fixtures.token_slots import fill

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.routing import LayerRouting
from npu_weave.experts.token_slots import TokenSlots
from npu_weave.memory import FaultDriver, HostDriver, PagePool

BASE_PAGES = sum(len(pages_under(range(EXPERTS), name)) for name in SHAPES) * LAYERS


def test_construction_moves_the_weights_and_rebinds_the_parameters() -> None:
    port, before = PlainLayer(0), base_weights(0)
    pool = PagePool(HostDriver())
    layer = ExpertLayer(port, pool, adapter_rows=6, slots=2)
    for name, tensor in port.parameters.items():
        assert tensor.shape == (EXPERTS + 6, *SHAPES[name]) and tensor is layer.tensors[name].tensor
        assert torch.equal(bits(tensor[:EXPERTS]), bits(before[name]))
        assert layer.tensors[name].mapped_rows == set(range(EXPERTS))
    assert pool.in_use * LAYERS == BASE_PAGES
    layer.check_integrity()


def calls_of_construction() -> list[tuple[str, int]]:
    driver = FaultDriver(HostDriver())
    layer = ExpertLayer(PlainLayer(0), PagePool(driver), adapter_rows=6, slots=2)
    calls = dict(driver.counts)
    del layer
    return [(call, n) for call, count in calls.items() for n in range(1, count + 1)]


def test_the_faults_cover_every_call_of_construction() -> None:
    assert {call for call, _ in calls_of_construction()} == {"reserve", "tensor", "create_page", "map"}


@pytest.mark.parametrize("fault", calls_of_construction(), ids=str)
def test_construction_that_fails_midway_gives_everything_back(fault: tuple[str, int]) -> None:
    driver = FaultDriver(HostDriver(), fault)
    port, pool = PlainLayer(0), PagePool(driver)
    before = dict(port.parameters)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED") as raised:
        ExpertLayer(port, pool, adapter_rows=6, slots=2)
    raised.value.__traceback__ = None  # it keeps the half-built layer, and so its address space, alive
    assert port.parameters.keys() == before.keys()
    assert all(port.parameters[name] is before[name] for name in before)
    assert (driver.stats().pages, driver.stats().mapped_pages, pool.in_use) == (0, 0, 0)


def test_a_port_that_fails_to_rebind_keeps_its_own_weights() -> None:
    class Stubborn(PlainLayer):
        def rebind(self, name: str, tensor: torch.Tensor) -> None:
            if name == "w2" and tensor.shape[0] > EXPERTS:
                raise RuntimeError("no")
            super().rebind(name, tensor)

    port, driver = Stubborn(0), HostDriver()
    with pytest.raises(RuntimeError):
        ExpertLayer(port, PagePool(driver), adapter_rows=6, slots=2)
    assert driver.stats().pages == 0
    for name, tensor in base_weights(0).items():
        assert torch.equal(bits(port.parameters[name]), bits(tensor))


def test_install_and_remove() -> None:
    bank = make_bank()
    assert bank.pool.in_use == bank.base_pages == BASE_PAGES
    empty = bank.memory()
    first, second = packed({0: [0, 3], 1: [2]}, 1), packed({1: [2, 1, 3]}, 2)
    bank.install(1, first)
    check_served(bank, {1: first})
    bank.install(2, second)
    check_served(bank, {1: first, 2: second})
    bank.check_integrity()
    assert bank.pool.in_use == pages_of_live_rows(bank) > BASE_PAGES
    bank.remove(1)
    check_served(bank, {2: second})
    bank.install(1, second)
    check_served(bank, {1: second, 2: second})
    bank.remove(2)
    bank.remove(1)
    check_served(bank, {})
    bank.check_integrity()
    assert bank.memory() == empty


def test_rerouting_of_a_mixed_step() -> None:
    bank = make_bank()
    bank.install(2, packed({0: [1, 3]}, 1))
    tokens = TokenSlots(4, torch.device("cpu"))
    fill(tokens, [0, 2, 2])
    ids = torch.tensor([[1, 3], [1, 3], [0, 2], [3, 1]], dtype=torch.int32)
    assert LayerRouting(bank.layers[0], tokens).reroute(ids).tolist() == [[1, 3], [4, 5], [0, 2], [3, 1]]
    assert LayerRouting(bank.layers[1], tokens).reroute(ids).tolist() == ids.tolist()


@pytest.mark.parametrize("slot", [0, -1, 3])
def test_slots_that_do_not_exist(slot: int) -> None:
    bank = make_bank()
    with pytest.raises(IntegrityError, match="SLOT_STATE"):
        bank.install(slot, packed({0: [1]}, 1))


def test_a_slot_holds_one_adapter() -> None:
    bank = make_bank()
    with pytest.raises(IntegrityError, match="SLOT_STATE"):
        bank.remove(1)
    held = packed({0: [1]}, 1)
    bank.install(1, held)
    with pytest.raises(IntegrityError, match="SLOT_STATE"):
        bank.install(1, packed({0: [2]}, 2))
    check_served(bank, {1: held})


def test_rows_that_run_out_in_the_second_layer_leave_the_first_alone() -> None:
    bank = make_bank(adapter_rows=5)
    held = packed({0: [0], 1: [0, 1]}, 1)
    bank.install(1, held)
    before = bank.memory()
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        bank.install(2, packed({0: [1, 2], 1: [0, 1, 2, 3]}, 2))
    assert bank.memory() == before
    check_served(bank, {1: held})
    bank.check_integrity()


def test_a_row_that_does_not_hold_what_was_written_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank()
    before = bank.memory()
    with monkeypatch.context() as patch:
        spoil_rows(patch, "layers.1.w2 ")
        with pytest.raises(IntegrityError, match="ROW_CONTENT"):
            bank.install(1, packed({0: [1], 1: [0, 2]}, 1))
    assert bank.memory() == before
    check_served(bank, {})
    bank.check_integrity()


def test_check_fits_counts_the_largest_adapters_of_each_layer() -> None:
    bank = make_bank(adapter_rows=5, slots=2)
    adapters = [packed({0: [0, 1, 2], 1: [0]}, 1), packed({0: [0], 1: [0, 1]}, 2), packed({0: [0, 1], 1: [2]}, 3)]
    bank.check_fits(adapters, "x")
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        bank.check_fits([*adapters, packed({0: [1, 2, 3]}, 4)], "x")


@pytest.mark.parametrize("rows", range(1, 9))
def test_pages_bound_is_the_worst_case(rows: int) -> None:
    """Against every way in which that many of 8 adapter rows can lie, counted by walking over their bytes."""
    layer = make_bank(adapter_rows=8).layers[0]
    base = {name: pages_under(range(EXPERTS), name) for name in SHAPES}
    adapter_rows = range(EXPERTS, EXPERTS + 8)
    worst = max(
        sum(len(pages_under(set(chosen), name) - base[name]) for name in SHAPES)
        for chosen in combinations(adapter_rows, rows)
    )
    all_rows = sum(len(pages_under(adapter_rows, name) - base[name]) for name in SHAPES)
    assert worst <= layer.pages_bound(rows) <= all_rows


def test_memory_limit_is_checked_before_anything_is_installed() -> None:
    bank = make_bank(adapter_pages=4)
    small, large = packed({0: [1]}, 1), packed({0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, 2)
    bank.check_fits([small], "x")
    bank.install(1, small)
    with pytest.raises(CapacityError, match="MEMORY_EXHAUSTED"):
        bank.check_fits([small, large], "x")
    with pytest.raises(CapacityError, match="MEMORY_EXHAUSTED"):
        bank.install(2, large)
    check_served(bank, {1: small})
    bank.check_integrity()
    assert bank.pool.driver.stats().created_bytes <= (BASE_PAGES + 4) * PAGE


@pytest.mark.parametrize("damage", ["map", "owned", "mapping", "used", "allocator"])
def test_check_integrity_sees_damage(damage: str) -> None:
    bank = make_bank()
    bank.install(1, packed({0: [1, 2]}, 1))
    layer = bank.layers[0]

    def break_it(bank: ExpertBank) -> None:
        match damage:
            case "map":
                layer.map.table[1, 0] = EXPERTS
            case "owned":
                layer.owned[2] = list(layer.owned[1])
            case "mapping":
                layer.tensors["w2"].unmap_rows([layer.owned[1][0]])
            case "used":
                bank._used.clear()
            case "allocator":
                layer.rows.release(layer.owned[1])

    bank.check_integrity()
    break_it(bank)
    with pytest.raises(IntegrityError):
        bank.check_integrity()
