"""A worker's store: what is staged, what sits in a slot, who has to go."""

from __future__ import annotations

import pytest
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
)

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency.store import AdapterStore

ADAPTERS = {number: packed({0: [number % 4], 1: [0, 3]}, number) for number in range(1, 6)}


def store_with(*revisions: int, slots: int = 2) -> AdapterStore:
    """Enough rows for `slots` adapters; `revisions` are staged in this order."""
    store = AdapterStore(make_bank(adapter_rows=2 * slots, slots=slots))
    for revision in revisions:
        store.stage(revision, ADAPTERS[revision])
    return store


def check(store: AdapterStore, resident: dict[int, int]) -> None:
    """Exactly these revisions are in these slots, and their bytes are served."""
    assert store.resident == resident
    check_served(store.bank, {slot: ADAPTERS[revision] for revision, slot in resident.items()})
    store.check_integrity()


def use(store: AdapterStore, *revisions: int) -> None:
    """One step of these revisions."""
    store.activate(revisions)
    store.last_used[[store.slot_of(revision) for revision in revisions]] = store.last_used.max() + 1


def test_staging_fills_free_slots_and_evicts_nobody() -> None:
    store = store_with(1, 2, 3)
    check(store, {1: 1, 2: 2})
    assert set(store.staged) == {1, 2, 3} and store.slot_of(3) is None


def test_activation_evicts_the_least_recently_used() -> None:
    store = store_with(1, 2, 3)
    use(store, 2)
    use(store, 1)
    assert store.activate([3]) == [3]
    check(store, {1: 1, 3: 2})
    assert store.activate([3, 1]) == []


def test_activation_never_evicts_what_the_same_step_needs() -> None:
    store = store_with(1, 2, 3)
    use(store, 1)
    use(store, 2)
    assert store.activate([1, 3]) == [3]
    check(store, {1: 1, 3: 2})


def test_more_adapters_than_slots_in_one_step() -> None:
    store = store_with(1, 2, 3)
    with pytest.raises(CapacityError, match="SLOTS_EXHAUSTED"):
        store.activate([1, 2, 3])
    store.check_integrity()


def test_unknown_and_repeated_revisions() -> None:
    store = store_with(1)
    with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
        store.activate([9])
    with pytest.raises(IntegrityError, match="REVISION_STAGED"):
        store.stage(1, ADAPTERS[2])
    assert not store.drop(9) and not store.pin(9)
    check(store, {1: 1})


def test_drop_gives_everything_back_and_the_slot_is_used_again() -> None:
    store = store_with()
    empty = store.bank.memory()
    for revision in (1, 2, 3):
        store.stage(revision, ADAPTERS[revision])
    assert store.drop(1)
    check(store, {2: 2})
    store.stage(4, ADAPTERS[4])
    check(store, {2: 2, 4: 1})
    for revision in (2, 3, 4):
        assert store.drop(revision)
    check(store, {})
    assert store.bank.memory() == empty and not store.staged


def test_staging_is_refused_when_any_two_could_not_be_on_the_device_together() -> None:
    store = AdapterStore(make_bank(adapter_rows=5, slots=2))
    small, large, other = packed({0: [0]}, 11), packed({0: [0, 1, 2]}, 12), packed({0: [0, 1, 2]}, 13)
    store.stage(1, small)
    store.stage(2, large)
    # it would fit beside the small one, but not beside the large one
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        store.stage(3, other)
    assert set(store.staged) == {1, 2}
    # the large one once more shares its rows
    store.stage(4, large)
    assert store.drop(2) and store.drop(4)
    store.stage(3, other)
    store.check_integrity()


def test_pinned_adapters_are_the_last_to_go() -> None:
    store = store_with(1, 2, 3, 4)
    use(store, 1)
    assert store.pin(1)
    use(store, 2)
    store.activate([3])
    check(store, {1: 1, 3: 2})
    # a step that needs both slots gets them
    store.activate([3, 4])
    check(store, {3: 2, 4: 1})
    assert store.pin(1), "still pinned"
    assert store.slot_of(1) is not None


def test_the_last_slot_cannot_be_pinned_while_others_wait() -> None:
    store = store_with(1, 2, 3)
    assert store.pin(3)
    with pytest.raises(CapacityError, match="SLOTS_PINNED"):
        store.pin(1)
    store.drop(3)
    assert store.pin(1)


def test_adapters_staged_after_all_slots_are_pinned_are_served_all_the_same() -> None:
    store = store_with(1, 2)
    assert store.pin(1) and store.pin(2)
    store.stage(3, ADAPTERS[3])
    use(store, 3)
    assert store.slot_of(3) is not None
    store.check_integrity()


def test_ranks_that_see_the_same_calls_agree() -> None:
    stores = [store_with(1, 2, 3), store_with(1, 2, 3)]
    for store in stores:
        use(store, 2)
        store.activate([3])
    assert stores[0].fingerprint() == stores[1].fingerprint()
    stores[1].activate([1])
    assert stores[0].fingerprint() != stores[1].fingerprint()


def test_a_fence_that_fails_keeps_the_adapter() -> None:
    driver = FaultDriver(HostDriver())
    store = AdapterStore(make_bank(driver))
    store.stage(1, ADAPTERS[1])
    driver.arm(("fence", 1))
    with pytest.raises(DriverError):
        store.drop(1)
    check(store, {1: 1})
    assert store.drop(1)
    check(store, {})


@pytest.mark.parametrize("damage", ["unknown revision", "one slot twice", "other adapter"])
def test_check_integrity_sees_damage(damage: str) -> None:
    store = store_with(1, 2)
    match damage:
        case "unknown revision":
            del store.staged[1]
        case "one slot twice":
            store._slot_of[2] = 1
        case "other adapter":
            store.staged[1], store.staged[2] = store.staged[2], store.staged[1]
    with pytest.raises(IntegrityError):
        store.check_integrity()
