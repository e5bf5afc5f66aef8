"""The expert weight manager over an NPU's memory: the real torch_npu on an emulated runtime."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from emulation.cann.acl import OUT_OF_MEMORY, Acl

from npu_weave.errors import CapacityError, DriverError, WeaveError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.memory import AclDriver
from weave_bench.plain_layer import Geometry, plain_bank, random_adapter

pytestmark = pytest.mark.emulated_ascend

GEOMETRY = Geometry(layers=2, experts=4, hidden=512, width=768)
FIRST = random_adapter("first", GEOMETRY, {0: [1, 2], 1: [0]}, 1)
SECOND = random_adapter("second", GEOMETRY, {0: [0], 1: [1, 3]}, 2)


@pytest.fixture
def bank(acl: Acl, torch_npu: ModuleType) -> ExpertBank:
    return plain_bank(AclDriver(0), GEOMETRY, slots=2, rows=8)


def seen(bank: ExpertBank) -> dict[str, Any]:
    """All that a kernel, the driver and the books see."""
    rows = {
        (index, name, row): tensor.row_view(row).cpu().view(torch.int16)
        for index, layer in bank.layers.items()
        for name, tensor in layer.tensors.items()
        for row in sorted(tensor.mapped_rows)
    }
    maps = {index: layer.map.table.cpu() for index, layer in bank.layers.items()}
    return {"rows": rows, "maps": maps, "memory": bank.memory(), "pages": bank.pool.driver.stats()}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    tensors = all(
        left[kind].keys() == right[kind].keys() and all(torch.equal(left[kind][k], right[kind][k]) for k in left[kind])
        for kind in ("rows", "maps")
    )
    return tensors and (left["memory"], left["pages"]) == (right["memory"], right["pages"])


def check_served(bank: ExpertBank, slot: int, adapter: PackedAdapter) -> None:
    """Through the map on the device, every tuned expert is the adapter's and every other one the base's."""
    for index, layer in bank.layers.items():
        line = layer.map.table[slot].cpu().tolist()
        packed = adapter.layers[index]
        for expert, row in enumerate(line):
            if expert not in packed.experts:
                assert row == expert
                continue
            for name, tensor in layer.tensors.items():
                meant = packed.weights[name][packed.experts.index(expert)]
                assert torch.equal(tensor.tensor[row].cpu().view(torch.int16), meant.view(torch.int16))


def test_adapters_come_and_go(bank: ExpertBank) -> None:
    empty = seen(bank)
    bank.install(1, FIRST)
    bank.install(2, SECOND)
    bank.check_integrity()
    check_served(bank, 1, FIRST)
    check_served(bank, 2, SECOND)
    bank.remove(1)
    check_served(bank, 2, SECOND)
    bank.remove(2)
    bank.check_integrity()
    assert same(seen(bank), empty)


def test_maps_and_weights_are_on_the_device(bank: ExpertBank) -> None:
    layer = bank.layers[0]
    assert str(layer.map.table.device) == "npu:0"
    assert {str(tensor.tensor.device) for tensor in layer.tensors.values()} == {"npu:0"}


@pytest.mark.parametrize("call", ["aclrtMallocPhysical", "aclrtMapMem", "aclrtSynchronizeDevice"])
def test_an_install_that_fails_at_any_position_leaves_everything_as_it_was(
    call: str, acl: Acl, bank: ExpertBank
) -> None:
    bank.install(1, FIRST)
    before = seen(bank)
    for position in range(1, 40):
        acl.fail(call, position, code=OUT_OF_MEMORY)
        try:
            bank.install(2, SECOND)
        except (DriverError, CapacityError):
            acl.forget_failures()
            assert same(seen(bank), before), position
            bank.check_integrity()
            continue
        break
    acl.forget_failures()
    assert 1 < position < 39, "it failed at least once, and not for ever"
    check_served(bank, 1, FIRST)
    check_served(bank, 2, SECOND)


def test_a_device_that_is_full_refuses_the_adapter_and_keeps_the_others(acl: Acl, bank: ExpertBank) -> None:
    bank.install(1, FIRST)
    before = seen(bank)
    hoard = []
    with pytest.raises(DriverError, match="DRIVER_OUT_OF_MEMORY"):
        while True:
            hoard.append(bank.pool.driver.create_page())
    with pytest.raises(WeaveError, match="MEMORY_EXHAUSTED"):
        bank.install(2, SECOND)
    for page in hoard:
        bank.pool.driver.destroy_page(page)
    assert same(seen(bank), before)
    bank.install(2, SECOND)
    check_served(bank, 2, SECOND)
