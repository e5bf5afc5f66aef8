"""Virtual memory on an emulated runtime: what is documented works, and everything else is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from emulation.cann.acl import (
    BUSY,
    HBM_HUGE_1G,
    INVALID,
    INVALID_DEVICE,
    OUT_OF_MEMORY,
    READ,
    READ_WRITE,
    RULE_BROKEN,
    Acl,
    AclError,
    GiB,
    MiB,
    Properties,
    properties,
)
from emulation.cann.process import lines

pytestmark = pytest.mark.emulated_ascend

PAGE = 2 * MiB


def refused(code: int, reason: str) -> pytest.RaisesExc[AclError]:
    return pytest.RaisesExc(AclError, match=reason, check=lambda error: error.code == code)


def mapped(acl: Acl, device: int = 0) -> tuple[int, int]:
    """A reservation of four pages with one mapped at its start; its address and the handle."""
    base, handle = acl.reserve(4 * PAGE), acl.create(PAGE, properties(device))
    acl.map(base, PAGE, handle)
    return base, handle


def test_pages_keep_what_was_written_and_come_back(acl: Acl) -> None:
    before = acl.free_bytes()
    base, handle = mapped(acl)
    assert base % PAGE == 0
    assert acl.free_bytes() == before - PAGE
    acl.write(base + 5, b"weights")
    acl.unmap(base)
    acl.map(base + 3 * PAGE, PAGE, handle)  # a page moves without a copy
    assert acl.read(base + 3 * PAGE + 5, 7) == b"weights"
    acl.unmap(base + 3 * PAGE)
    acl.destroy(handle)
    acl.release(base)
    assert acl.free_bytes() == before


def test_the_granularity_follows_the_kind_of_page(acl: Acl) -> None:
    assert acl.granularity(properties()) == PAGE
    assert acl.granularity(properties(attribute=HBM_HUGE_1G), option=1) == GiB
    with refused(INVALID, "neither MINIMUM nor RECOMMENDED"):
        acl.granularity(properties(), option=7)


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        (lambda acl: acl.reserve(0), INVALID, "size is 0"),
        (lambda acl: acl.reserve(PAGE, alignment=PAGE), INVALID, "alignment must be 0"),
        (lambda acl: acl.reserve(PAGE, expected=16 << 40), INVALID, "fixed address is not emulated"),
        (lambda acl: acl.reserve(PAGE, flags=2), INVALID, "flags must be 0 or 1"),
        (lambda acl: acl.reserve(128 * GiB + 1), RULE_BROKEN, "at most 128 GiB"),
        (lambda acl: acl.release(PAGE), RULE_BROKEN, "not the start of a reservation"),
    ],
)
def test_reservations_that_are_refused(acl: Acl, call: Callable[[Acl], object], code: int, reason: str) -> None:
    with refused(code, reason):
        call(acl)


def test_the_largest_reservation_is_128_gib(acl: Acl) -> None:
    acl.release(acl.reserve(128 * GiB, flags=1))


@pytest.mark.parametrize(
    ("size", "wanted", "code", "reason"),
    [
        (0, properties(), INVALID, "size is 0"),
        (PAGE + MiB, properties(), RULE_BROKEN, "no multiple of 2097152"),
        (PAGE, properties(attribute=HBM_HUGE_1G), RULE_BROKEN, "no multiple of 1073741824"),
        (PAGE, properties(attribute=99), INVALID, "memAttr 99 is not emulated"),
        (PAGE, properties(handle_type=2), INVALID, "handleType must be NONE"),
        (PAGE, properties(allocation_type=1), INVALID, "allocationType must be PINNED"),
        (PAGE, properties(reserve=1), INVALID, "reserve must be 0"),
        (PAGE, properties(device=7), INVALID_DEVICE, "no device 7"),
        (1 << 40, properties(), OUT_OF_MEMORY, "bytes free"),
    ],
)
def test_physical_memory_that_is_refused(acl: Acl, size: int, wanted: Properties, code: int, reason: str) -> None:
    before = acl.free_bytes()
    with refused(code, reason):
        acl.create(size, wanted)
    assert acl.free_bytes() == before


def test_flags_must_be_zero(acl: Acl) -> None:
    base, handle = mapped(acl)
    with refused(INVALID, "flags must be 0"):
        acl.create(PAGE, flags=1)
    with refused(INVALID, "flags must be 0"):
        acl.map(base + PAGE, PAGE, handle, flags=1)


@pytest.mark.parametrize(
    ("at", "size", "offset", "code", "reason"),
    [
        (PAGE, PAGE, PAGE, INVALID, "offset must be 0"),
        (PAGE, MiB, 0, RULE_BROKEN, "not the handle's 2097152"),
        (PAGE, 2 * PAGE, 0, RULE_BROKEN, "not the handle's 2097152"),
        (PAGE + 4096, PAGE, 0, RULE_BROKEN, "no multiple of 2 MiB"),
        (-(1 << 40), PAGE, 0, RULE_BROKEN, "is not reserved"),
        (0, PAGE, 0, RULE_BROKEN, "is taken"),
    ],
)
def test_mappings_that_are_refused(acl: Acl, at: int, size: int, offset: int, code: int, reason: str) -> None:
    base, _ = mapped(acl)
    other = acl.create(PAGE)
    with refused(code, reason):
        acl.map(base + at, size, other, offset=offset)
    acl.map(base + PAGE, PAGE, other)  # the refusal changed nothing


def test_a_mapping_stays_inside_its_reservation(acl: Acl) -> None:
    base = acl.reserve(3 * PAGE)
    large = acl.create(2 * PAGE)
    with refused(RULE_BROKEN, "runs out of its reservation"):
        acl.map(base + 2 * PAGE, 2 * PAGE, large)
    acl.map(base + PAGE, 2 * PAGE, large)
    with refused(RULE_BROKEN, "is taken"):
        acl.map(base + 2 * PAGE, PAGE, acl.create(PAGE))


def test_a_handle_has_one_address_at_a_time(acl: Acl) -> None:
    base, handle = mapped(acl)
    with refused(RULE_BROKEN, "mapped already"):
        acl.map(base + PAGE, PAGE, handle)


def test_one_reservation_holds_one_device(acl: Acl) -> None:
    base, _ = mapped(acl, device=0)
    other = acl.create(PAGE, properties(device=1))
    with refused(RULE_BROKEN, "one device only"):
        acl.map(base + PAGE, PAGE, other)
    acl.unmap(base)
    acl.map(base + PAGE, PAGE, other)  # none of the first device is left


def test_unmap_takes_the_start_of_a_mapping(acl: Acl) -> None:
    base, handle = acl.reserve(4 * PAGE), acl.create(2 * PAGE)
    acl.map(base, 2 * PAGE, handle)
    for address in (base + PAGE, base + 3 * PAGE):
        with refused(RULE_BROKEN, "not the start of a mapping"):
            acl.unmap(address)
    acl.unmap(base)
    with refused(RULE_BROKEN, "not the start of a mapping"):
        acl.unmap(base)


def test_a_freed_handle_lives_until_it_is_unmapped(acl: Acl) -> None:
    before = acl.free_bytes()
    base, handle = mapped(acl)
    acl.write(base, b"still here")
    acl.destroy(handle)
    assert acl.read(base, 10) == b"still here"
    assert acl.free_bytes() == before - PAGE
    with refused(RULE_BROKEN, "not a handle of physical memory, or no longer"):
        acl.destroy(handle)
    acl.unmap(base)
    assert acl.free_bytes() == before
    with refused(RULE_BROKEN, "not a handle of physical memory, or no longer"):
        acl.map(base, PAGE, handle)


def test_a_reservation_is_released_empty_and_whole(acl: Acl) -> None:
    base, _ = mapped(acl)
    with refused(RULE_BROKEN, "still has 1 mappings"):
        acl.release(base)
    acl.unmap(base)
    with refused(RULE_BROKEN, "not the start of a reservation"):
        acl.release(base + PAGE)
    acl.release(base)
    with refused(RULE_BROKEN, "not the start of a reservation"):
        acl.release(base)


def test_access_is_granted_once_and_for_a_whole_mapping(acl: Acl) -> None:
    base, _ = mapped(acl)
    assert acl.access(base, 0) == READ_WRITE  # the owner's, without asking
    assert acl.access(base, 1) == 0
    acl.grant(base, PAGE, 1, READ)
    assert acl.access(base + 100, 1) == READ
    with refused(BUSY, "cannot be changed"):
        acl.grant(base, PAGE, 1, READ_WRITE)
    for address, size in ((base, MiB), (base + PAGE, PAGE), (base, 2 * PAGE)):
        with refused(RULE_BROKEN, "not one whole mapping"):
            acl.grant(address, size, 1, READ)


def test_copying_at_once_refuses_a_hole(acl: Acl) -> None:
    base, _ = mapped(acl)
    for address, count in ((base + PAGE, 1), (base + PAGE - 2, 4)):
        with refused(RULE_BROKEN, "no memory under it"):
            acl.write(address, b"x" * count)
        with refused(RULE_BROKEN, "no memory under it"):
            acl.read(address, count)
    acl.map(base + PAGE, PAGE, acl.create(PAGE))
    acl.write(base + PAGE - 2, b"edge")  # over two neighbouring pages
    assert acl.read(base + PAGE - 2, 4) == b"edge"


def test_copies_go_where_they_say(acl: Acl) -> None:
    address = acl.malloc(16)
    with refused(RULE_BROKEN, "device to device, but an end is host memory"):
        acl.copy_later(address, id(address), 8)
    with refused(RULE_BROKEN, "not the start of an allocation"):
        acl.free(address + 16)
    acl.free(address)


def test_devices_need_peer_access_for_a_copy() -> None:
    refusal, copied = lines(
        """
        here = acl.malloc(16); acl.set_device(1); there = acl.malloc(16)
        try:
            acl.copy_later(there, here, 16)
        except AclError as error:
            print(error)
        acl.call("aclrtDeviceEnablePeerAccess", 0, 0)
        acl.copy_later(there, here, 16); acl.synchronize(); print("copied")
        """
    )
    assert "no peer access" in refusal
    assert copied == "copied"
