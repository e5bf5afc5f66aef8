"""A load in which any driver call fails leaves everything as it was, to the byte; an unload loses nothing for good."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
    pages_of_live_rows,
)

from npu_weave.errors import CapacityError, DriverError
from npu_weave.memory import FaultDriver, HostDriver, LimitDriver
from npu_weave.residency.store import AdapterStore

FIRST, SECOND = packed({0: [1, 2], 1: [3]}, 1), packed({0: [0, 3], 1: [0, 1, 2]}, 2)
THIRD = packed({0: [2, 3], 1: [2]}, 3)


class Setting:
    """FIRST is staged and installed as revision 1; everything that can be seen of the store as one value."""

    def __init__(self, slots: int = 2) -> None:
        self.driver = FaultDriver(HostDriver())
        self.store = AdapterStore(make_bank(self.driver, adapter_rows=7, slots=slots))
        self.store.stage(1, FIRST)

    def seen(self) -> tuple[Any, ...]:
        layers = self.store.bank.layers.values()
        return (
            self.driver.stats(),
            self.store.bank.memory(),
            self.store.bank.pool.idle,
            self.store.fingerprint(),
            set(self.store.staged),
            [layer.map.table.tolist() for layer in layers],
            [layer.rows.free for layer in layers],
            [
                (tensor.name, row, digest(tensor.row_view(row)))
                for layer in layers
                for tensor in layer.tensors.values()
                for row in sorted(tensor.mapped_rows)
            ],
        )

    def check(self, slots: dict[int, Any]) -> None:
        self.store.check_integrity()
        check_served(self.store.bank, slots)
        assert self.store.bank.pool.in_use == pages_of_live_rows(self.store.bank)


def digest(row: torch.Tensor) -> bytes:
    return hashlib.blake2b(row.view(torch.int16).numpy().tobytes()).digest()


def faults_of(action: Callable[[Setting], Any]) -> list[tuple[str, int]]:
    """Every driver call of an undisturbed run: its name, and which of its kind."""
    setting = Setting()
    setting.driver.arm(None)
    action(setting)
    return [(call, n) for call, count in setting.driver.counts.items() for n in range(1, count + 1)]


def load(setting: Setting) -> None:
    setting.store.stage(2, SECOND)


def unload(setting: Setting) -> None:
    setting.store.drop(1)


LOAD, UNLOAD = faults_of(load), faults_of(unload)


def test_the_faults_cover_every_kind_of_call() -> None:
    assert {call for call, _ in LOAD} == {"create_page", "map", "fence"}
    assert {call for call, _ in UNLOAD} == {"fence", "unmap", "destroy_page"}
    assert sum(call == "map" for call, _ in LOAD) > 2


@pytest.mark.parametrize("fault", LOAD, ids=str)
def test_a_load_that_fails_changes_nothing_and_then_succeeds(fault: tuple[str, int]) -> None:
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        load(setting)
    assert setting.seen() == before
    setting.check({1: FIRST})
    load(setting)
    setting.check({1: FIRST, 2: SECOND})


@pytest.mark.parametrize("fault", LOAD, ids=str)
def test_an_activation_that_fails_leaves_the_slot_empty_and_then_succeeds(fault: tuple[str, int]) -> None:
    """Inside a step: revision 1 has made room by then, and its host copy brings it back."""
    setting = Setting(slots=1)
    setting.store.stage(2, SECOND)
    setting.store.drop(1)
    setting.store.stage(1, FIRST)
    setting.store.activate([2])
    setting.store.drop(2)
    empty = setting.seen()
    setting.store.staged[2] = SECOND
    setting.driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        setting.store.activate([2])
    del setting.store.staged[2]
    assert setting.seen() == empty
    setting.store.activate([1])
    setting.check({1: FIRST})


@pytest.mark.parametrize("fault", UNLOAD, ids=str)
def test_an_unload_that_fails_keeps_all_or_frees_all_in_the_end(fault: tuple[str, int]) -> None:
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    if fault == ("fence", 1):
        with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
            unload(setting)
        assert setting.seen() == before
        setting.check({1: FIRST})
        unload(setting)
        setting.check({})
        return
    unload(setting)
    setting.store.check_integrity()
    check_served(setting.store.bank, {})
    # the next load and unload take along what was left over
    setting.store.stage(2, SECOND)
    check_served(setting.store.bank, {1: SECOND})
    setting.store.drop(2)
    setting.check({})
    assert setting.store.bank.pool.in_use == setting.store.bank.base_pages


def test_memory_that_stays_mapped_is_not_handed_out_and_comes_back() -> None:
    """The driver refuses every unmap for a while."""
    setting = Setting()
    setting.driver.arm(("unmap", 1), times=None)
    for revision, adapter in ((2, SECOND), (3, THIRD)):
        setting.store.drop(revision - 1)
        setting.store.check_integrity()
        setting.store.stage(revision, adapter)
        setting.store.check_integrity()
        check_served(setting.store.bank, {1: adapter})
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        setting.store.stage(4, SECOND)
    check_served(setting.store.bank, {1: THIRD})
    setting.driver.arm(None)
    setting.store.stage(4, SECOND)
    setting.check({1: THIRD, 2: SECOND})


def test_a_device_that_runs_out_of_memory_refuses_the_load_and_nothing_else() -> None:
    limited = LimitDriver(HostDriver(), 1 << 40)
    store = AdapterStore(make_bank(limited, adapter_rows=7))
    store.stage(1, FIRST)
    limited.limit_bytes = (limited.stats().pages + 1) * limited.granularity
    before = limited.stats(), store.fingerprint()
    with pytest.raises(CapacityError, match="MEMORY_EXHAUSTED"):
        store.stage(2, SECOND)
    assert (limited.stats(), store.fingerprint()) == before
    check_served(store.bank, {1: FIRST})
    limited.limit_bytes = 1 << 40
    store.stage(2, SECOND)
    check_served(store.bank, {1: FIRST, 2: SECOND})
    store.check_integrity()
