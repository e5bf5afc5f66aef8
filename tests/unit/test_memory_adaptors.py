"""The adaptors do what they say to the calls they are for, and nothing to the others."""

from __future__ import annotations

import contextlib

import pytest

from npu_weave.errors import DriverError
from npu_weave.memory import FaultDriver, HostDriver, LimitDriver, StatisticsDriver, TraceDriver
from npu_weave.memory.adaptors import CALLS, Call
from npu_weave.memory.driver import Driver


def one_of_each(driver: Driver) -> list[str]:
    """Makes each call of a driver once, in an order that works, and returns the names of those that failed."""
    failed: list[str] = []
    base = driver.reserve(driver.granularity)
    page = driver.create_page()
    for name, call in (
        ("map", lambda: driver.map(base, page)),
        ("tensor", lambda: driver.tensor(base, 8, None)),
        ("fence", driver.fence),
        ("unmap", lambda: driver.unmap(base)),
        ("destroy_page", lambda: driver.destroy_page(page)),
        ("release", lambda: driver.release(base)),
    ):
        try:
            call()
        except DriverError:
            failed.append(name)
    return failed


def test_faults_hit_the_nth_call_of_their_kind_only() -> None:
    driver = FaultDriver(HostDriver(), fail_at=("create_page", 3))
    driver.create_page()
    driver.create_page()
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        driver.create_page()
    driver.create_page()
    assert driver.stats().pages == 3 and driver.counts["create_page"] == 4


def test_faults_may_last() -> None:
    driver = FaultDriver(HostDriver(), fail_at=("create_page", 2), times=None)
    driver.create_page()
    for _ in range(3):
        with pytest.raises(DriverError):
            driver.create_page()
    driver.arm(None)
    driver.create_page()
    assert driver.stats().pages == 2


@pytest.mark.parametrize("name", ["map", "tensor", "fence", "unmap", "destroy_page", "release"])
def test_every_call_can_be_made_to_fail(name: str) -> None:
    assert name in one_of_each(FaultDriver(HostDriver(), fail_at=(name, 1)))


@pytest.mark.parametrize("name", ["reserve", "create_page"])
def test_calls_that_make_things_can_be_made_to_fail(name: str) -> None:
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        one_of_each(FaultDriver(HostDriver(), fail_at=(name, 1)))


def test_unknown_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="create_page"):
        FaultDriver(HostDriver(), fail_at=("malloc", 1))


def test_limit_may_change_and_counts_bytes() -> None:
    driver = LimitDriver(HostDriver(), limit_bytes=2 * (2 << 20) - 1)
    driver.create_page()
    with pytest.raises(DriverError, match="DRIVER_OUT_OF_MEMORY"):
        driver.create_page()
    driver.limit_bytes += 1
    driver.create_page()


def test_trace_keeps_what_succeeded_in_order() -> None:
    driver = TraceDriver(FaultDriver(HostDriver(), fail_at=("unmap", 1)))
    assert one_of_each(driver) == ["unmap", "destroy_page", "release"]
    assert [call.name for call in driver.calls] == ["reserve", "create_page", "map", "tensor", "fence"]
    reserve, create, mapped = driver.calls[:3]
    assert reserve == Call("reserve", (driver.granularity,), reserve.result)
    assert mapped == Call("map", (reserve.result or 0, create.result or 0), None)
    assert {call.name for call in driver.calls} <= set(CALLS)


def test_statistics_count_what_was_made_and_what_failed() -> None:
    driver = StatisticsDriver(FaultDriver(HostDriver(), ("map", 2)))
    base = driver.reserve(3 * driver.granularity)
    pages = [driver.create_page() for _ in range(3)]
    for position, page in enumerate(pages):
        with contextlib.suppress(DriverError):
            driver.map(base + position * driver.granularity, page)
    calls = driver.calls()
    assert {name: (call.made, call.failed) for name, call in calls.items()} == {
        "reserve": (1, 0), "create_page": (3, 0), "map": (3, 1),
    }  # fmt: skip
    assert all(call.seconds > 0 for call in calls.values())
    driver.fence()
    assert driver.calls()["create_page"] == calls["create_page"]
