"""Rows that several slots use: whatever fails while an adapter goes in or out, the other slots' rows and their counts
stay, to the byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    SHAPES,
    PlainLayer,
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
    pages_of_live_rows,
)
from fixtures.spoiled_rows import spoil_rows

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import PIECE_BYTES, RowCopy
from npu_weave.memory import FaultDriver, HostDriver, PagePool

OLD = packed({0: [0, 1, 2], 1: [2, 3]}, 1)


def revised(adapter: PackedAdapter, changed: dict[int, list[int]], seed: int) -> PackedAdapter:
    """The adapter with other weights for the experts of `changed`, and equal ones, in other memory, for the rest."""
    fresh = packed({layer: each.experts for layer, each in adapter.layers.items()}, seed)
    for layer, each in fresh.layers.items():
        for name, weight in each.weights.items():
            for position, expert in enumerate(each.experts):
                if expert not in changed.get(layer, []):
                    weight[position] = adapter.layers[layer].weights[name][position]
    return fresh


NEW = revised(OLD, {0: [1, 2], 1: [3]}, 2)
NEXT = revised(NEW, {0: [0], 1: [2]}, 3)
FRESH_ROWS = 3


class Setting:
    """Slot 1 holds OLD. Two fault drivers, so that two kinds of calls can fail."""

    def __init__(self) -> None:
        self.driver = FaultDriver(HostDriver())
        self.second = FaultDriver(self.driver)
        self.bank = make_bank(self.second, adapter_rows=6, slots=3)
        self.bank.install(1, OLD)

    def seen(self) -> tuple[Any, ...]:
        """All state, private parts and the bytes of every mapped row included."""
        layers = self.bank.layers.values()
        return (
            self.driver.stats(),
            self.bank.memory(),
            (self.bank.pool.in_use, self.bank.pool.idle, set(self.bank._used)),
            [(layer.rows.free_rows, layer.users.counts, dict(layer.users._row_of)) for layer in layers],
            [(dict(layer.owned), list(layer._leaving), layer.map.table.tolist()) for layer in layers],
            [[layer.map.rows_of(slot) for slot in range(4)] for layer in layers],
            [
                (tensor.name, row, digest(tensor.row_view(row)))
                for layer in layers
                for tensor in layer.tensors.values()
                for row in sorted(tensor.mapped_rows)
            ],
        )

    def check(self, slots: dict[int, PackedAdapter]) -> None:
        self.bank.check_integrity(slots)
        check_served(self.bank, slots)
        assert self.bank.pool.in_use == pages_of_live_rows(self.bank)

    def healthy(self) -> None:
        self.driver.arm(None)
        self.second.arm(None)


def digest(row: torch.Tensor) -> bytes:
    return hashlib.blake2b(row.view(torch.int16).numpy().tobytes()).digest()


def install(setting: Setting) -> None:
    setting.bank.install(2, NEW)


def remove(setting: Setting) -> None:
    """Leaves slot 1 with what both use."""
    setting.bank.remove(2)


def faults_of(prepare: Callable[[Setting], None], action: Callable[[Setting], None]) -> list[tuple[str, int]]:
    """Every driver call of an undisturbed run: its name, and which of its kind."""
    setting = Setting()
    prepare(setting)
    setting.driver.arm(None)
    action(setting)
    return [(call, n) for call, count in setting.driver.counts.items() for n in range(1, count + 1)]


INSTALL, REMOVE = faults_of(lambda setting: None, install), faults_of(install, remove)


def test_the_faults_cover_every_kind_of_call_and_the_revisions_share() -> None:
    assert {call for call, _ in INSTALL} == {"create_page", "map", "fence"}
    assert {call for call, _ in REMOVE} == {"fence", "unmap", "destroy_page"}
    setting = Setting()
    install(setting)
    assert [layer.users.counts for layer in setting.bank.layers.values()] == [
        {4: 2, 5: 1, 6: 1, 7: 1, 8: 1},
        {4: 2, 5: 1, 6: 1},
    ]
    setting.check({1: OLD, 2: NEW})


@pytest.mark.parametrize("fault", INSTALL, ids=str)
def test_an_install_that_fails_leaves_the_shared_rows_and_counts(fault: tuple[str, int]) -> None:
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        install(setting)
    setting.healthy()
    assert setting.seen() == before
    setting.check({1: OLD})
    install(setting)
    setting.check({1: OLD, 2: NEW})
    # nothing holds on to OLD's rows: its slot takes along all but what NEW shares
    setting.bank.remove(1)
    setting.check({2: NEW})
    setting.bank.remove(2)
    setting.check({})
    assert setting.bank.pool.in_use == setting.bank.base_pages


@pytest.mark.parametrize("n", range(1, len(SHAPES) + 1))
def test_weights_that_cannot_be_moved_in_stay_where_they_were(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    port, pool = PlainLayer(0), PagePool(HostDriver())
    before = dict(port.parameters)
    with monkeypatch.context() as patch:
        fail_at_copy(patch, n, Refused)
        with pytest.raises(Refused):
            ExpertLayer(port, pool, adapter_rows=6, slots=2)
    assert all(port.parameters[name] is before[name] for name in before)
    assert (pool.in_use, pool.driver.stats().pages) == (0, 0)


class Refused(Exception):
    """A copy that fails, as one onto a device may."""


PIECES = FRESH_ROWS * sum(-(-2 * rows * columns // PIECE_BYTES) for rows, columns in SHAPES.values())
"""Copies an install makes."""


def fail_at_piece(monkeypatch: pytest.MonkeyPatch, n: int, error: type[BaseException]) -> Iterator[int]:
    """The n-th copy into rows fails half-way, with half of its bytes written. Returns the count of copies."""
    pieces = iter(range(1, 1_000))
    whole = RowCopy.run

    def run(self: RowCopy, *, verify: bool) -> None:
        if next(pieces) == n:
            half = self.row.numel() // 2
            self.row[:half].copy_(self.source[:half])
            raise error
        whole(self, verify=verify)

    monkeypatch.setattr(RowCopy, "run", run)
    return pieces


def fail_at_copy(monkeypatch: pytest.MonkeyPatch, n: int, error: type[BaseException]) -> Iterator[int]:
    """The same for the copies of whole parameters by which base experts move in."""
    copies = iter(range(1, 1_000))
    whole = torch.Tensor.copy_

    def copy_(self: torch.Tensor, source: torch.Tensor, *rest: Any) -> torch.Tensor:
        if tuple(self.shape[-2:]) in SHAPES.values() and next(copies) == n:
            whole(self[: self.shape[0] // 2], source[: self.shape[0] // 2])
            raise error
        return whole(self, source, *rest)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    return copies


@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt])
@pytest.mark.parametrize("n", range(1, PIECES + 1))
def test_a_copy_that_fails_half_way(n: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    before = setting.seen()
    with monkeypatch.context() as patch:
        fail_at_piece(patch, n, error)
        with pytest.raises(error):
            install(setting)
    assert setting.seen() == before
    setting.check({1: OLD})
    with monkeypatch.context() as patch:
        copies = fail_at_piece(patch, 999, error)
        install(setting)
        assert next(copies) == PIECES + 1, "there are no other copies, so each has failed once"
    setting.check({1: OLD, 2: NEW})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_copy_gone_wrong_is_found_and_undone(layer: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    before = setting.seen()
    with monkeypatch.context() as patch:
        spoil_rows(patch, f"layers.{layer}.{name} ")
        with pytest.raises(IntegrityError, match="ROW_CONTENT"):
            install(setting)
    assert setting.seen() == before
    setting.check({1: OLD})


def test_rows_that_run_out_behind_shared_ones() -> None:
    setting = Setting()
    install(setting)
    before = setting.seen()
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        setting.bank.install(3, packed({0: [0, 1], 1: [0, 1]}, 4))
    assert setting.seen() == before
    setting.bank.install(3, NEXT)
    setting.check({1: OLD, 2: NEW, 3: NEXT})


@pytest.mark.parametrize("fault", REMOVE, ids=str)
def test_a_removal_that_fails_keeps_all_or_frees_all_in_the_end(fault: tuple[str, int]) -> None:
    setting = Setting()
    install(setting)
    before = setting.seen()
    setting.driver.arm(fault)
    if fault == ("fence", 1):
        with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
            remove(setting)
        setting.healthy()
        assert setting.seen() == before
        setting.check({1: OLD, 2: NEW})
        return
    remove(setting)
    setting.healthy()
    setting.bank.check_integrity({1: OLD})
    check_served(setting.bank, {1: OLD})
    # rows that wait for their unmapping are nobody's, also when their content comes again
    setting.bank.install(3, NEW)
    setting.check({1: OLD, 3: NEW})
    setting.bank.remove(1)
    setting.bank.remove(3)
    setting.check({})
    assert setting.bank.pool.in_use == setting.bank.base_pages


@pytest.mark.parametrize("blocked", ["unmap", "destroy_page", "fence"])
@pytest.mark.parametrize("fault", INSTALL, ids=str)
def test_a_failed_install_that_cannot_be_undone_at_once(fault: tuple[str, int], blocked: str) -> None:
    """After the failure one kind of call fails for good, so rows or pages wait; the other slot is served all along."""
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    setting.second.arm((blocked, 1), times=None)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        install(setting)
    setting.bank.check_integrity({1: OLD})
    check_served(setting.bank, {1: OLD})
    setting.healthy()
    install(setting)
    setting.bank.check_integrity({1: OLD, 2: NEW})
    check_served(setting.bank, {1: OLD, 2: NEW})
    remove(setting)
    for layer in setting.bank.layers.values():
        assert not layer._leaving
    setting.check({1: OLD})
    assert setting.seen()[1:6] == before[1:6]


def test_a_page_that_can_be_neither_unmapped_nor_mapped_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is lost, and only it: nothing of it is handed out, and other adapters come and go."""
    setting = Setting()
    other = packed({0: [1], 1: [1]}, 4)
    setting.bank.install(2, other)
    setting.driver.arm(("unmap", 2))
    setting.second.arm(("map", 1))
    setting.bank.remove(1)
    assert "PAGE_LOST" in caplog.text
    setting.healthy()
    lost = [rows for layer in setting.bank.layers.values() for rows in layer._leaving]
    assert len(lost) == 1
    for slot, adapter in ((1, packed({0: [0, 3], 1: [0, 1]}, 5)), (3, packed({0: [2]}, 6))):
        setting.bank.install(slot, adapter)
        setting.bank.check_integrity({2: other, slot: adapter})
        check_served(setting.bank, {2: other, slot: adapter})
        assert not set(lost[0]).intersection(setting.bank.layers[0].owned[slot])
        setting.bank.remove(slot)
    setting.bank.check_integrity({2: other})
    check_served(setting.bank, {2: other})
    assert [rows for layer in setting.bank.layers.values() for rows in layer._leaving] == lost
    setting.bank.layers[0].tensors.clear()  # cannot be closed: one page is gone
