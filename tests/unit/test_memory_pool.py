"""The page pool: all or nothing, within the limit, and as many pages as the driver says."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

import pytest

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.memory import FaultDriver, HostDriver, LimitDriver, PagePool

MIB2 = 2 << 20


def exhausted() -> pytest.RaisesExc[CapacityError]:
    return pytest.RaisesExc(CapacityError, check=lambda error: error.code == "MEMORY_EXHAUSTED")


def test_acquire_creates_and_release_destroys() -> None:
    driver = HostDriver()
    pool = PagePool(driver)
    pages = pool.acquire(5)
    assert pages == sorted(set(pages)) and len(pages) == 5
    assert (pool.in_use, pool.idle, driver.stats().pages) == (5, 0, 5)
    pool.release(pages[1:4])
    assert (pool.in_use, pool.idle, driver.stats().pages) == (2, 0, 2)
    pool.check_integrity()
    assert pool.acquire(0) == []


def test_released_pages_may_be_destroyed_later_or_used_before() -> None:
    driver, waiting = FaultDriver(HostDriver()), list[Callable[[], None]]()
    pool = PagePool(driver, limit_bytes=6 * MIB2, later=waiting.append)
    pages = pool.acquire(5)
    pool.release(pages[:4])
    assert (pool.in_use, pool.idle, pool.available(), driver.stats().pages) == (1, 4, 5, 5)
    again = pool.acquire(2)
    assert set(again) < set(pages) and driver.stats().pages == 5, "none was made for it"
    driver.arm(("destroy_page", 1))
    waiting[0]()
    assert (pool.in_use, pool.idle, driver.stats().pages) == (3, 2, 5), "the driver failed"
    driver.arm(None)
    pool.release(again[:1])
    assert pool.idle == 3
    waiting[1]()
    assert (pool.in_use, pool.idle, driver.stats().pages) == (2, 0, 2)
    pool.check_integrity()
    waiting[1]()
    assert driver.stats().pages == 2 and len(waiting) == 2


def test_pages_kept_are_handed_out_lowest_first_whoever_destroys_others() -> None:
    for later in (None, list[Callable[[], None]]().append):
        pool = PagePool(HostDriver(), later=later)
        pool.preallocate(6)
        pages = pool.acquire(6)
        pool.release(pages[5:] + pages[2:4] + pages[:2])
        assert [pool.acquire(1) for _ in range(5)] == [[page] for page in (*pages[:4], pages[5])]


def test_the_limit_counts_whole_pages_and_gives_all_or_nothing() -> None:
    driver = HostDriver()
    pool = PagePool(driver, limit_bytes=4 * MIB2 + MIB2 - 1)
    assert (pool.limit_pages, pool.available()) == (4, 4)
    kept = pool.acquire(3)
    with exhausted():
        pool.acquire(2)
    assert (pool.in_use, pool.available(), driver.stats().pages) == (3, 1, 3)
    pool.release(kept[:1])
    assert len(pool.acquire(2)) == 2
    assert pool.available() == 0
    pool.check_integrity()


def test_without_a_limit_there_is_always_room() -> None:
    pool = PagePool(HostDriver())
    assert (pool.limit_pages, pool.available()) == (None, sys.maxsize)


def test_a_driver_out_of_memory_is_a_capacity_error_and_leaves_nothing_behind() -> None:
    driver = LimitDriver(HostDriver(), 3 * MIB2)
    pool = PagePool(driver)
    kept = pool.acquire(1)
    with exhausted():
        pool.acquire(3)
    assert (pool.in_use, pool.idle, driver.stats().pages) == (1, 0, 1)
    driver.limit_bytes = 4 * MIB2
    pool.release(pool.acquire(3) + kept)
    assert driver.stats().pages == 0


@pytest.mark.parametrize("n", range(1, 6))
def test_a_failure_at_any_page_of_acquire_leaves_the_pool_as_it_was(n: int) -> None:
    driver = FaultDriver(HostDriver())
    pool = PagePool(driver)
    pool.preallocate(3)
    pool.acquire(2)
    driver.arm(("create_page", n))
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        pool.acquire(6)
    assert (pool.in_use, pool.idle, driver.stats().pages) == (2, 1, 3)
    pool.check_integrity()


def test_preallocated_pages_stay_and_are_used_first() -> None:
    driver = HostDriver()
    pool = PagePool(driver, limit_bytes=8 * MIB2)
    pool.preallocate(4)
    assert (pool.in_use, pool.idle, driver.stats().pages, pool.available()) == (0, 4, 4, 8)
    pages = pool.acquire(6)
    assert driver.stats().pages == 6
    pool.release(pages)
    assert (pool.idle, driver.stats().pages) == (4, 4)
    pool.preallocate(2)
    assert driver.stats().pages == 4
    with exhausted():
        pool.preallocate(9)
    pool.check_integrity()


def test_pages_that_are_not_in_use_are_refused_before_anything_changes() -> None:
    pool = PagePool(HostDriver())
    first, second = pool.acquire(2)
    for wrong in ([first, 999], [first, first]):
        with pytest.raises(IntegrityError, match="PAGE_NOT_IN_USE"):
            pool.release(wrong)
    assert pool.in_use == 2
    pool.release([first, second])
    with pytest.raises(IntegrityError, match="PAGE_NOT_IN_USE"):
        pool.release([first])


def test_a_page_that_cannot_be_destroyed_is_kept_logged_and_used_again(caplog: pytest.LogCaptureFixture) -> None:
    driver = FaultDriver(HostDriver())
    pool = PagePool(driver, limit_bytes=2 * MIB2)
    pages = pool.acquire(2)
    driver.arm(("destroy_page", 1))
    with caplog.at_level(logging.WARNING):
        pool.release(pages)
    assert "stays idle" in caplog.text
    assert (pool.in_use, pool.idle, pool.available(), driver.stats().pages) == (0, 1, 2, 1)
    pool.check_integrity()
    pool.release(pool.acquire(2))
    assert (pool.idle, driver.stats().pages) == (0, 0)


def test_integrity_sees_a_page_made_behind_the_pool() -> None:
    driver = HostDriver()
    pool = PagePool(driver)
    pool.check_integrity()
    driver.create_page()
    with pytest.raises(IntegrityError, match="POOL_INCONSISTENT"):
        pool.check_integrity()


def test_stocked_pages_are_found_by_who_acquires_and_the_rest_goes_back() -> None:
    driver = FaultDriver(HostDriver())
    pool = PagePool(driver)
    pool.stock(3)
    pool.stock(2)
    assert (pool.idle, driver.stats().pages) == (5, 5)
    driver.arm(("create_page", 1))
    taken = pool.acquire(4)
    driver.arm(None)
    pool.unstock(3)
    assert (pool.in_use, pool.idle) == (4, 1), "one of those stocked for somebody else"
    pool.unstock(2)
    pool.release(taken[:2])
    assert (pool.in_use, pool.idle, driver.stats().pages) == (2, 0, 2)
    pool.check_integrity()


class SlowDriver(FaultDriver):
    """Its second page and those after it are made when `gate` is opened; `asked` tells that one was asked for."""

    def __init__(self) -> None:
        super().__init__(HostDriver())
        self.gate, self.asked = threading.Event(), threading.Event()

    def create_page(self) -> int:
        if self.stats().pages:
            self.asked.set()
            assert self.gate.wait(60)
        return super().create_page()


@pytest.mark.parametrize("meanwhile", ["nothing", "unstocked", "all taken"])
def test_nobody_waits_for_a_page_that_is_made_ahead(meanwhile: str) -> None:
    driver = SlowDriver()
    pool = PagePool(driver, limit_bytes=2 * MIB2)
    maker = threading.Thread(target=pool.stock, args=(2,))
    maker.start()
    assert driver.asked.wait(60)
    (page,) = pool.acquire(1)
    pool.check_integrity()
    if meanwhile == "unstocked":
        pool.unstock(2)
    elif meanwhile == "all taken":
        driver.gate.set()
        assert len(pool.acquire(1)) == 1
    driver.gate.set()
    maker.join(60)
    pool.check_integrity()
    left = {"nothing": (1, 1), "unstocked": (1, 0), "all taken": (2, 0)}[meanwhile]
    assert (pool.in_use, pool.idle) == left and driver.stats().pages == sum(left)
    pool.release([page])
    pool.check_integrity()


def test_what_cannot_be_stocked_is_left_to_acquire() -> None:
    driver = FaultDriver(HostDriver())
    pool = PagePool(driver, limit_bytes=4 * MIB2)
    driver.arm(("create_page", 2))
    pool.stock(3)
    driver.arm(None)
    assert pool.idle == 1
    pool.stock(9)
    assert pool.idle == 4, "never beyond the limit"
    assert len(pool.acquire(4)) == 4
    pool.unstock(12)
    pool.check_integrity()


def test_pages_stay_stocked_when_others_are_released() -> None:
    pool = PagePool(HostDriver())
    held = pool.acquire(2)
    pool.stock(2)
    pool.release(held)
    assert (pool.in_use, pool.idle) == (0, 2)
    pool.unstock(2)
    assert pool.idle == 0
