"""Loads and drops that go a few layers at a time: what is half done is seen by nobody, and goes without trace."""

from __future__ import annotations

import pytest
from fixtures.disk_adapters import Rank
from fixtures.loading_rank import Disk, disk, driver, rank, seen  # noqa: F401 (fixtures)
from fixtures.loading_rank import begin as begin_load
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
    pages_of_live_rows,
)

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.experts import bank
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency.store import AdapterStore


@pytest.fixture(autouse=True)
def one_layer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "SLICE_EXPERTS", 1)


def begin(rank: Rank, disk: Disk, revision: int) -> None:
    """All of it is read; its two layers are two slices."""
    begin_load(rank, revision, disk[revision][0])
    rank.reach(revision, "read")


def test_a_load_is_copied_when_all_of_it_is_leased_and_served_when_it_is_published(rank: Rank, disk: Disk) -> None:
    begin(rank, disk, 1)
    assert rank.loader.commit(1), "the second layer is left"
    assert rank.state(1)["stage"] == "copying"
    rank.store.check_integrity()
    with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
        rank.loader.publish(1)
    assert not rank.loader.commit(1)
    with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
        rank.loader.commit(1)
    rank.reach(1, "copied")
    check_served(rank.store.bank, {})
    rank.loader.publish(1)
    rank.store.check_integrity()
    check_served(rank.store.bank, {1: disk[1][1]})


def test_given_up_half_way_it_leaves_no_trace(rank: Rank, disk: Disk) -> None:
    before = seen(rank)
    begin(rank, disk, 1)
    assert rank.loader.commit(1)
    assert rank.loader.cancel(1)
    assert seen(rank) == before
    rank.load(1, disk[1][0])
    check_served(rank.store.bank, {1: disk[1][1]})


def test_memory_that_cannot_be_had_half_way_leaves_no_trace(rank: Rank, driver: FaultDriver, disk: Disk) -> None:
    before = seen(rank)
    begin(rank, disk, 1)
    assert rank.loader.commit(1)
    driver.arm(("map", 1))
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        rank.loader.commit(1)
    driver.arm(None)
    assert seen(rank) == before and not rank.store.staged
    rank.load(1, disk[1][0])
    check_served(rank.store.bank, {1: disk[1][1]})


def test_a_step_that_needs_the_slot_half_way_has_the_load_end_on_the_host(driver: FaultDriver, disk: Disk) -> None:
    rank = Rank(driver, slots=1)
    begin(rank, disk, 1)
    assert rank.loader.commit(1)
    rank.store.staged[2] = disk[2][1]
    assert rank.store.activate([2]) == [2]
    rank.store.check_integrity()
    assert not rank.loader.commit(1)
    rank.reach(1, "copied")
    rank.loader.publish(1)
    check_served(rank.store.bank, {1: disk[2][1]})
    rank.store.activate([1])
    check_served(rank.store.bank, {1: disk[1][1]})
    rank.close()


def test_a_drop_frees_memory_bit_by_bit(rank: Rank, disk: Disk) -> None:
    empty = seen(rank)
    for revision in (1, 2):
        rank.load(revision, disk[revision][0])
    (fingerprint, more), rows = rank.drop(1), [layer.rows.free for layer in rank.store.bank.layers.values()]
    assert more and rows == [7, 5], "of 8: the first layer is free"
    rank.store.check_integrity()
    check_served(rank.store.bank, {2: disk[2][1]})
    assert rank.free_rows() == (fingerprint, False), "of what is staged and served nothing has changed"
    assert rank.store.bank.pool.in_use == pages_of_live_rows(rank.store.bank)
    rank.store.drop(2)
    assert seen(rank) == empty


def test_an_adapter_finds_the_rows_that_are_left_to_be_freed() -> None:
    store = AdapterStore(make_bank(HostDriver(), adapter_rows=2, slots=1))
    for revision, experts in ((1, {0: [0, 1], 1: [0, 1]}), (2, {0: [2, 3], 1: [2]}), (3, {1: [3]})):
        adapter = packed(experts, revision)
        store.stage(revision, adapter)
        check_served(store.bank, {1: adapter})
        store.check_integrity()
        assert store.withdraw(revision)
    assert store.bank.pool.in_use > store.bank.base_pages, "nobody has freed the rest"
    while store.free_next():
        pass
    assert store.bank.pool.in_use == store.bank.base_pages


def test_an_adapter_finds_the_pages_that_are_left_to_be_freed_in_other_layers() -> None:
    """Where a limit leaves no others."""
    first, second = packed({1: [0, 1]}, 1), packed({0: [0, 1]}, 2)
    unlimited = make_bank(HostDriver())
    unlimited.install(1, first)
    limited = make_bank(HostDriver(), adapter_pages=unlimited.pool.in_use - unlimited.base_pages)
    limited.install(1, first)
    limited.withdraw(1)
    assert limited.pool.available() == 0
    limited.install(1, second)
    check_served(limited, {1: second})
    limited.check_integrity({1: second})


def test_what_is_too_much_is_refused_whatever_is_left_to_be_freed() -> None:
    bank_ = make_bank(HostDriver(), adapter_rows=2, slots=2)
    bank_.install(1, packed({0: [0], 1: [0]}, 1))
    bank_.install(2, packed({0: [1]}, 2))
    bank_.withdraw(2)
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        bank_.install(2, packed({0: [1], 1: [1, 2]}, 3))
    bank_.check_integrity({1: packed({0: [0], 1: [0]}, 1)})
    bank_.install(2, packed({0: [1], 1: [1]}, 4))
    bank_.check_integrity()
