"""Random lives of a store: load, drop, activate, pin, and driver calls that fail in between.

The model is a dictionary of what should be staged and which bytes each slot should serve. Everything else is checked
against it after every step: the store's own invariants, the base rows, the rows every slot reaches, and the pages.
"""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.plain_layers import EXPERTS, LAYERS, check_served, close_banks, make_bank, packed, pages_of_live_rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from npu_weave.errors import CapacityError, DriverError
from npu_weave.experts import bank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import PreparedInstall
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency.store import AdapterStore

EXPERT_SETS = st.fixed_dictionaries(
    {layer: st.sets(st.integers(0, EXPERTS - 1), max_size=EXPERTS).map(sorted) for layer in range(LAYERS)}
)
LOAD_FAULTS = st.tuples(st.sampled_from(["create_page", "map", "fence"]), st.integers(1, 6))
UNLOAD_FAULTS = st.tuples(st.sampled_from(["unmap", "destroy_page", "fence"]), st.integers(1, 6))


class Lives(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, 3), rows=st.integers(3, 9), at_once=st.sampled_from([1, bank.SLICE_EXPERTS]))
    def start(self, slots: int, rows: int, at_once: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(bank, "SLICE_EXPERTS", at_once)
        self.driver = FaultDriver(HostDriver())
        self.slots, self.rows = slots, rows
        self.store = AdapterStore(make_bank(self.driver, adapter_rows=rows, slots=slots))
        self.staged: dict[int, PackedAdapter] = {}
        self.revisions = 0
        self.preparing: tuple[int, PreparedInstall] | None = None

    def fits(self, adapter: PackedAdapter) -> bool:
        """Whether any `slots` of the staged adapters and this one have rows in every layer, side by side."""
        for layer in range(LAYERS):
            counts = [each.experts_in(layer) for each in (*self.staged.values(), adapter)]
            if sum(sorted(counts)[-self.slots :]) > self.rows:
                return False
        return True

    @rule(experts=EXPERT_SETS)
    def stage(self, experts: dict[int, list[int]]) -> None:
        self.revisions += 1
        adapter = packed(experts, self.revisions)
        resident = self.store.resident
        try:
            self.store.stage(self.revisions, adapter)
        except CapacityError as error:
            assert error.code == "ROWS_EXHAUSTED" and not self.fits(adapter)
            assert self.store.resident == resident
            return
        assert self.fits(adapter)
        self.staged[self.revisions] = adapter
        assert self.store.resident.items() >= resident.items(), "staging evicts nobody"
        assert len(self.store.resident) == min(len(resident) + 1, self.slots)

    @rule(experts=EXPERT_SETS)
    def prepare(self, experts: dict[int, list[int]]) -> None:
        """The first half of a load; what comes before its `publish` may take its slot away."""
        adapter = packed(experts, self.revisions + 1)
        if not self.fits(adapter):
            return
        self.revisions += 1
        resident = self.store.resident
        install = self.store.prepare(self.revisions, adapter)
        self.staged[self.revisions] = adapter
        assert (install is None) == (len(resident) == self.slots) and self.store.resident == resident
        self.preparing = None if install is None else (self.revisions, install)

    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        for _ in range(count if self.preparing else 0):
            self.preparing[1].lease_next() or self.preparing[1].copy_next()

    @rule()
    def publish(self) -> None:
        if self.preparing is None:
            return
        (revision, install), self.preparing = self.preparing, None
        while install.lease_next() or install.copy_next():
            pass
        before, aborted = self.store.resident, install.ended
        self.store.publish(revision)
        assert self.store.resident.items() >= before.items()
        if not aborted:
            assert self.store.resident.keys() == before.keys() | {revision}

    @rule(experts=EXPERT_SETS, fault=LOAD_FAULTS)
    def stage_with_fault(self, experts: dict[int, list[int]], fault: tuple[str, int]) -> None:
        self.publish()
        adapter = packed(experts, self.revisions + 1)
        if not self.fits(adapter):
            return
        before = self.visible()
        self.driver.arm(fault)
        try:
            self.store.stage(self.revisions + 1, adapter)
        except DriverError:
            assert self.visible() == before
        else:
            self.staged[self.revisions + 1] = adapter
        self.driver.arm(None)
        self.revisions += 1

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if not self.staged:
            return
        revision = data.draw(st.sampled_from(sorted(self.staged)))
        assert self.store.drop(revision)
        del self.staged[revision]
        assert not self.store.drop(revision)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """As drop, but its memory is left to `free_next`, or to whoever needs it."""
        if not self.staged:
            return
        revision = data.draw(st.sampled_from(sorted(self.staged)))
        assert self.store.withdraw(revision)
        del self.staged[revision]

    @rule()
    def free_next(self) -> None:
        self.store.free_next()

    @rule(data=st.data(), fault=UNLOAD_FAULTS)
    def drop_with_fault(self, data: st.DataObject, fault: tuple[str, int]) -> None:
        self.publish()
        if not self.staged:
            return
        revision = data.draw(st.sampled_from(sorted(self.staged)))
        resident = revision in self.store.resident
        before = self.visible()
        self.driver.arm(fault)
        try:
            self.store.drop(revision)
        except DriverError:
            assert fault == ("fence", 1) and resident and self.visible() == before
        else:
            del self.staged[revision]
        self.driver.arm(None)
        self.sweep()

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        needed = data.draw(st.sets(st.sampled_from(sorted(self.staged)), max_size=self.slots)) if self.staged else set()
        before = self.store.resident
        installed = self.store.activate(needed)
        assert installed == sorted(needed - before.keys())
        assert needed <= self.store.resident.keys()
        evicted = before.keys() - self.store.resident.keys()
        assert len(evicted) == max(0, len(before) + len(installed) - self.slots), "no more than it takes"
        self.store.last_used[[self.store.resident[revision] for revision in needed]] = self.store.last_used.max() + 1

    @rule(data=st.data(), fault=LOAD_FAULTS | UNLOAD_FAULTS)
    def activate_with_fault(self, data: st.DataObject, fault: tuple[str, int]) -> None:
        needed = data.draw(st.sets(st.sampled_from(sorted(self.staged)), max_size=self.slots)) if self.staged else set()
        self.driver.arm(fault)
        try:
            self.store.activate(needed)
        except DriverError:
            pass
        except CapacityError:
            assert self.stranded_rows(), "nothing else can stand in the way of an activation"
        self.driver.arm(None)
        self.sweep()

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        if not self.staged:
            return
        revision = data.draw(st.sampled_from(sorted(self.staged)))
        try:
            assert self.store.pin(revision)
        except CapacityError as error:
            assert error.code == "SLOTS_PINNED" and len(self.staged) > self.slots
        else:
            assert revision in self.store.resident

    def teardown(self) -> None:
        self.patch.undo()
        close_banks()

    def stranded_rows(self) -> bool:
        layers = self.store.bank.layers.values()
        held = [sum(map(len, layer.owned.values())) + layer.rows.free for layer in layers]
        return held != [self.rows] * LAYERS

    def sweep(self) -> None:
        """Frees what the driver kept mapped, as the next load or removal would; until then it is accounted for."""
        self.store.check_integrity()
        for layer in self.store.bank.layers.values():
            layer.free()
        assert not self.stranded_rows()

    def visible(self) -> tuple[Any, ...]:
        return (self.driver.stats(), self.store.fingerprint(), self.store.bank.memory())

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.check_integrity()
        assert self.store.staged == self.staged
        assert len(set(self.store.resident.values())) == len(self.store.resident) <= self.slots
        check_served(self.store.bank, {slot: self.staged[each] for each, slot in self.store.resident.items()})
        if any(layer._leaving for layer in self.store.bank.layers.values()):
            return  # some of its memory is still that of adapters that left
        assert self.store.bank.pool.in_use == pages_of_live_rows(self.store.bank) == self.driver.stats().mapped_pages


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=20)
