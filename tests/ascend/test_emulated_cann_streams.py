"""Streams and events on an emulated runtime: order, delay, and what happens to a task without memory."""

from __future__ import annotations

import pytest
from emulation.cann.acl import Acl
from emulation.cann.process import lines, run

pytestmark = pytest.mark.emulated_ascend

DELAY_US = 100_000  # long enough that work which does not wait is seen not to


def test_tasks_of_a_stream_run_in_order(acl: Acl) -> None:
    address, stream = acl.malloc(16), acl.stream()
    for value in range(50):
        acl.fill_later(address, value, 16, stream)
    acl.synchronize(stream)
    assert acl.read(address, 16) == bytes([49]) * 16


def test_a_delayed_task_is_seen_after_the_wait_only() -> None:
    seen = lines(
        """
        address = acl.malloc(16); acl.write(address, bytes(16))
        acl.fill_later(address, 7, 16)
        print(acl.read(address, 1)[0]); acl.synchronize(); print(acl.read(address, 1)[0])
        """,
        task_delay_us=DELAY_US,
    )
    assert seen == ["0", "7"]


@pytest.mark.parametrize("waits", [True, False])
def test_an_event_orders_two_streams(waits: bool) -> None:
    """The writer is three delays late; the reader copies after it only if it waits for the event."""
    (seen,) = lines(
        f"""
        a, b = acl.malloc(16), acl.malloc(16); acl.write(a, bytes(16)); acl.write(b, bytes(16))
        writer, reader, event = acl.stream(), acl.stream(), acl.event()
        for value in (1, 2, 7):
            acl.fill_later(a, value, 16, writer)
        acl.record(event, writer)
        if {waits}:
            acl.wait_event(reader, event)
        acl.copy_later(b, a, 16, reader); acl.synchronize(reader)
        print(acl.read(b, 1)[0])
        """,
        task_delay_us=DELAY_US,
    )
    assert (seen == "7") == waits


def test_an_event_that_was_never_recorded_holds_up_nobody(acl: Acl) -> None:
    stream = acl.stream()
    acl.wait_event(stream, acl.event())
    acl.synchronize(stream)


def test_a_wait_can_end_before_the_tasks() -> None:
    seen = lines(
        """
        acl.fill_later(acl.malloc(16), 7, 16)
        try:
            acl.call("aclrtSynchronizeStreamWithTimeout", c_void_p(0), 1)
        except AclError as error:
            print(error.code == STREAM_TIMEOUT)
        """,
        task_delay_us=DELAY_US,
    )
    assert seen == ["True"]


def test_a_task_over_a_hole_is_a_device_fault_that_stays() -> None:
    done = run(
        """
        base = acl.reserve(2 * MiB); fine = acl.malloc(16); acl.write(fine, bytes(16))
        acl.fill_later(base, 1, 16)
        for attempt in (acl.synchronize, acl.synchronize, lambda: acl.read(fine, 1)):
            try:
                attempt(); print("no error")
            except AclError as error:
                print(error.code)
        acl.set_device(1); acl.synchronize(); print("the other device is well")
        """
    )
    assert done.stdout.splitlines() == ["507015", "507015", "507015", "the other device is well"]
    assert "device fault: a task touched 0x" in done.stderr


@pytest.mark.parametrize(("fence", "expected"), [("", "507015"), ("acl.synchronize()", "fine")])
def test_unmapping_under_a_task_in_flight_is_a_fault(fence: str, expected: str) -> None:
    seen = lines(
        f"""
        base, handle = acl.reserve(2 * MiB), acl.create(2 * MiB)
        acl.map(base, 2 * MiB, handle); acl.fill_later(base, 1, 16)
        {fence}
        acl.unmap(base)
        try:
            acl.synchronize(); print("fine")
        except AclError as error:
            print(error.code)
        """,
        task_delay_us=DELAY_US,
    )
    assert seen == [expected]


def test_an_event_after_a_fault_still_frees_other_streams() -> None:
    seen = lines(
        """
        base, stream, other, event = acl.reserve(2 * MiB), acl.stream(), acl.stream(), acl.event()
        acl.fill_later(base, 1, 16, stream); acl.record(event, stream); acl.wait_event(other, event)
        try:
            acl.synchronize(other)
        except AclError as error:
            print(error.code)
        """
    )
    assert seen == ["507015"]
