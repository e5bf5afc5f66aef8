"""Failures that a test asks an emulated runtime for, its limits and records, and what it does not emulate."""

from __future__ import annotations

import pytest
from emulation.cann.acl import NOT_SUPPORTED, OUT_OF_MEMORY, Acl, AclError, MiB, properties
from emulation.cann.process import lines, run

pytestmark = pytest.mark.emulated_ascend

PAGE = 2 * MiB
STEPS = (
    "aclrtMemGetAllocationGranularity",
    "aclrtReserveMemAddress",
    "aclrtMallocPhysical",
    "aclrtMapMem",
    "aclrtMemSetAccess",
    "aclrtMemExportToShareableHandle",
    "aclrtMemSetPidToShareableHandle",
    "aclrtUnmapMem",
    "aclrtFreePhysical",
    "aclrtReleaseMemAddress",
    "aclrtSynchronizeDevice",
)


def use_memory(acl: Acl) -> None:
    """One life of a page, by every call on virtual memory."""
    size = acl.granularity(properties())
    base, handle = acl.reserve(size), acl.create(size)
    acl.map(base, size, handle)
    acl.grant(base, size, 1, 1)
    acl.allow(acl.export(handle), 1)
    acl.synchronize()
    acl.unmap(base)
    acl.destroy(handle)
    acl.release(base)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_every_call_fails_where_it_was_asked_to(acl: Acl, name: str, position: int) -> None:
    acl.fail(name, position, code=507000 + position)
    for _ in range(position - 1):
        use_memory(acl)
    with pytest.raises(AclError, match=f"{507000 + position}: {name}: failed as a test asked"):
        use_memory(acl)
    use_memory(acl)  # once for each order


def test_a_failed_call_has_done_nothing(acl: Acl) -> None:
    base, handle = acl.reserve(PAGE), acl.create(PAGE)
    for name, call in (
        ("aclrtMapMem", lambda: acl.map(base, PAGE, handle)),
        ("aclrtUnmapMem", lambda: acl.unmap(base)),
        ("aclrtReleaseMemAddress", lambda: acl.release(base)),
        ("aclrtFreePhysical", lambda: acl.destroy(handle)),
    ):
        acl.fail(name, 1)
        with pytest.raises(AclError, match=str(OUT_OF_MEMORY)):
            call()
        call()


def test_failures_from_the_environment() -> None:
    code = """
        for attempt in range(3):
            try:
                acl.create(2 * MiB); print("made")
            except AclError as error:
                print(error.code)
    """
    seen = lines(code, fail="aclrtMallocPhysical:2,aclrtMallocPhysical:3:507899")
    assert seen == ["made", "207001", "507899"]


@pytest.mark.parametrize(
    "setting", [{"fail": "aclrtMapMem"}, {"fail": "aclrtMapMem:0"}, {"devices": "many"}, {"memory_bytes": "-1"}]
)
def test_a_setting_that_cannot_be_read_ends_the_process(setting: dict[str, str]) -> None:
    done = run("acl.create(2 * MiB)", **setting)
    assert done.returncode == 2
    assert "expected" in done.stderr


def test_the_memory_of_a_device_is_limited() -> None:
    refusal, made, left, other = lines(
        """
        handles = [acl.create(2 * MiB) for _ in range(3)]
        for size in (4 * MiB, 2 * MiB):
            try:
                print(acl.malloc(size) > 0)
            except AclError as error:
                print(error)
        print(acl.free_bytes()); acl.set_device(1); print(acl.free_bytes())
        """,
        memory_bytes=8 * MiB,
    )
    assert refusal.startswith("207001") and "2097152 of 8388608 bytes free" in refusal
    assert (made, left, other) == ("True", "0", str(8 * MiB))


def test_there_are_as_many_devices_as_asked_for() -> None:
    seen = lines(
        """
        count = c_uint32(); acl.call("aclrtGetDeviceCount", ctypes.byref(count)); print(count.value)
        acl.set_device(3)
        try:
            acl.set_device(4)
        except AclError as error:
            print(error.code == INVALID_DEVICE)
        """,
        devices=4,
    )
    assert seen == ["4", "True"]


def test_calls_are_counted_and_traced(acl: Acl) -> None:
    before = acl.calls("aclrtMapMem")
    use_memory(acl)
    assert acl.calls("aclrtMapMem") == before + 1
    done = run("acl.create(2 * MiB)\ntry:\n    acl.create(1)\nexcept AclError: pass", trace=1, statistics=1)
    assert "emulated CANN: aclrtMallocPhysical -> 0" in done.stderr
    assert "emulated CANN: aclrtMallocPhysical -> 107000 aclrtMallocPhysical: size 1 is no multiple" in done.stderr
    assert "emulated CANN: aclrtMallocPhysical was called 2 times" in done.stderr


def test_a_call_nobody_wrote_says_its_name(acl: Acl, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AclError, match=f"{NOT_SUPPORTED}: rtKernelLaunch: not emulated"):
        acl.call("rtKernelLaunch")
    assert "emulated CANN: rtKernelLaunch is not emulated" in capfd.readouterr().err
