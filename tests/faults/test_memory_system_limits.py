"""The system refuses, or forks: statuses and errors, never a crash, and nothing half done."""

from __future__ import annotations

import subprocess
import sys

PRELUDE = """
import os, resource, sys, torch
from pathlib import Path
from npu_weave.errors import CapacityError, DriverError
from npu_weave.memory import HostDriver, PagePool, VirtualTensor
PAGE = 2 << 20

def refused(code, call, *arguments):
    try:
        call(*arguments)
    except (DriverError, CapacityError) as error:
        assert error.code == code, error
        assert error.got and error.remedy, error
        return error
    raise AssertionError(f"{call} was not refused")
"""


def succeeds(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_address_space() -> None:
    succeeds("""
driver = HostDriver()
resource.setrlimit(resource.RLIMIT_AS, (40 << 30, 40 << 30))
refused("DRIVER_OUT_OF_ADDRESS_SPACE", driver.reserve, 64 << 30)
driver.reserve(1 << 30)
assert driver.stats().reservations == 1
""")


def test_the_memory_file_may_not_grow() -> None:
    succeeds("""
driver = HostDriver()
pool = PagePool(driver)
tensor = VirtualTensor(pool, rows=8, row_shape=(PAGE,), dtype=torch.uint8, name="weight")
tensor.map_rows([0, 1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PAGE, 3 * PAGE))
error = refused("DRIVER_FAILED", tensor.map_rows, [2, 3, 4])
assert "File too large" in error.got
assert pool.in_use == driver.stats().pages == 2
tensor.map_rows([2])
tensor.check_integrity(); pool.check_integrity()
""")


def test_no_file_descriptor_is_left_for_the_driver() -> None:
    succeeds("""
used = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
try:
    HostDriver()
except DriverError as error:
    assert error.code == "DRIVER_UNAVAILABLE" and "Too many open files" in error.got, error
else:
    raise AssertionError("opened")
""")


def test_too_many_kernel_mappings() -> None:
    """All but a few of the process's kernel mappings are used up; maps fail as a status, and work again later."""
    succeeds("""
limit = int(Path("/proc/sys/vm/max_map_count").read_text())
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
driver = HostDriver()
pool = PagePool(driver)
tensor = VirtualTensor(pool, rows=64, row_shape=(PAGE,), dtype=torch.uint8, name="weight")
tensor.map_rows([1])
tensor.row_view(1).fill_(5)
filler = libc.mmap(None, limit * 4096, 0, 0x4022, -1, 0)
for at in range(1, limit, 2):
    if libc.mprotect(filler + at * 4096, 4096, 1) != 0:
        break
failed = 0
for row in range(3, 64, 2):
    try:
        tensor.map_rows([row])
    except (DriverError, CapacityError) as error:
        assert "Cannot allocate memory" in error.got, error
        failed += 1
assert failed > 0
tensor.check_integrity(); pool.check_integrity()
assert int(tensor.row_view(1).min()) == 5
libc.munmap(ctypes.c_void_p(filler), ctypes.c_size_t(limit * 4096))
tensor.map_rows(sorted(set(range(0, 64)) - tensor.mapped_rows))
for row in range(64):
    tensor.row_view(row)[::4096].fill_(row)
tensor.check_integrity()
tensor.close()
assert driver.stats().pages == 0
""")


def test_a_forked_child_may_read_and_may_change_nothing() -> None:
    succeeds("""
driver = HostDriver()
pool = PagePool(driver)
tensor = VirtualTensor(pool, rows=4, row_shape=(PAGE,), dtype=torch.uint8, name="weight")
tensor.map_rows([0, 1])
tensor.row_view(1).fill_(9)
child = os.fork()
if child == 0:
    status = 1
    try:
        assert tensor.row_view(1)[123] == 9
        refused("DRIVER_FORKED", driver.create_page)
        refused("DRIVER_FORKED", driver.reserve, PAGE)
        refused("DRIVER_FORKED", tensor.map_rows, [2])
        refused("DRIVER_FORKED", tensor.unmap_rows, [1])
        own = PagePool(HostDriver())
        own.release(own.acquire(2))
        del tensor, pool, driver
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
assert int(tensor.row_view(1).min()) == 9 and driver.stats().pages == 2
tensor.unmap_rows([0, 1])
tensor.close()
assert driver.stats().pages == 0
""")


def test_tensors_that_outlive_everything_do_not_disturb_the_end_of_the_process() -> None:
    succeeds("""
pool = PagePool(HostDriver())
tensor = VirtualTensor(pool, rows=4, row_shape=(PAGE,), dtype=torch.uint8, name="weight")
tensor.map_rows([0])
torch.kept_view = tensor.tensor[0]
kept = tensor.tensor[:2]
""")
