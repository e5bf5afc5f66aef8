"""Physical memory shared between processes, on an emulated runtime."""

from __future__ import annotations

import os
from textwrap import dedent

import pytest
from emulation.cann.acl import RULE_BROKEN, Acl, AclError, MiB
from emulation.cann.process import lines, start

pytestmark = pytest.mark.emulated_ascend

PAGE = 2 * MiB


def refused(reason: str) -> pytest.RaisesExc[AclError]:
    return pytest.RaisesExc(AclError, match=reason, check=lambda error: error.code == RULE_BROKEN)


IMPORT = """
    try:
        handle = acl.import_memory({shareable}, device={device})
    except AclError as error:
        print(error.code, error)
    else:
        base = acl.reserve(4 * MiB); acl.map(base, 2 * MiB, handle)
        print(acl.read(base, 5).decode()); acl.write(base, b"other")
        try:
            acl.map(base + 2 * MiB, 2 * MiB, acl.create(2 * MiB))
        except AclError as error:
            print(error)
        acl.unmap(base); acl.destroy(handle)
        print(acl.free_bytes() == 4 * GiB - 2 * MiB)  # the page is on its maker's account
"""


READ = """\
base = acl.reserve(2 * MiB); acl.map(base, 2 * MiB, handle); print(acl.read(base, 5).decode())
"""


def exported(acl: Acl, any_process: bool) -> tuple[int, int, int]:
    """A mapped page that begins with `mine!`: its address, handle and shareable handle."""
    base, handle = acl.reserve(PAGE), acl.create(PAGE)
    acl.map(base, PAGE, handle)
    acl.write(base, b"mine!")
    return base, handle, acl.export(handle, any_process)


def test_another_process_reads_and_writes_the_page(acl: Acl) -> None:
    base, _, shareable = exported(acl, any_process=True)
    read, mixed, accounted = lines(IMPORT.format(shareable=shareable, device=0))
    assert read == "mine!"
    assert "no imported beside own memory" in mixed
    assert accounted == "True"
    assert acl.read(base, 5) == b"other"


@pytest.mark.parametrize("listed", [True, False])
def test_a_process_must_be_on_the_whitelist(acl: Acl, listed: bool) -> None:
    _, _, shareable = exported(acl, any_process=False)
    with start("input()\n" + dedent(IMPORT).format(shareable=shareable, device=0)) as process:
        acl.allow(shareable, os.getpid(), *([process.pid] if listed else []))
        out, err = process.communicate("go\n")
    if listed:
        assert out.startswith("mine!\n"), err
    else:
        assert "not on the whitelist" in out, err


def test_memory_outlives_its_maker_s_handle(acl: Acl) -> None:
    base, handle, shareable = exported(acl, any_process=True)
    with start(f"handle = acl.import_memory({shareable})\nprint('imported', flush=True)\ninput()\n{READ}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        acl.unmap(base)
        acl.destroy(handle)
        out, err = process.communicate("go\n")
    assert out == "mine!\n", err
    assert "shares nothing" in lines(IMPORT.format(shareable=shareable, device=0))[0]


def test_another_device_needs_peer_access(acl: Acl) -> None:
    _, _, shareable = exported(acl, any_process=True)
    (refusal,) = lines(IMPORT.format(shareable=shareable, device=1))
    assert "device 1 has no peer access to device 0" in refusal
    enable = "acl.set_device(1); acl.call('aclrtDeviceEnablePeerAccess', 0, 0)\n"
    assert lines(enable + f"print(acl.import_memory({shareable}, device=1) > 0)") == ["True"]


def test_a_handle_is_exported_once_and_imported_elsewhere(acl: Acl) -> None:
    _, handle, shareable = exported(acl, any_process=True)
    with refused("exported already"):
        acl.export(handle)
    with refused("is for other processes"):
        acl.import_memory(shareable)
    with refused("not a shareable handle of this process"):
        acl.allow(shareable + 12345, 1)


def test_a_number_that_is_no_shareable_handle_is_refused() -> None:
    code = """
        try:
            acl.import_memory({} << 32 | {})
        except AclError as error:
            print(error)
    """
    assert "shares nothing under this handle" in lines(code.format(1 << 22, 5))[0]
    with open(__file__) as unrelated:
        assert "shares nothing" in lines(code.format(os.getpid(), unrelated.fileno() + 100))[0]
