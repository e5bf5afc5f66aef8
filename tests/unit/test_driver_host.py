"""What holds for the host's driver alone: the operating system agrees with its books."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from npu_weave.errors import DriverError
from npu_weave.memory import HostDriver, process_shmem_bytes

NOISE = 256 << 10  # other shared memory of the process that may come or go meanwhile, in bytes


def file_bytes() -> int:
    """Bytes the memory files of npu-weave occupy, from the file system's own count."""
    total = 0
    for fd in Path("/proc/self/fd").iterdir():
        if fd.is_symlink() and "npu-weave-pages" in os.readlink(fd):
            total += os.stat(fd).st_blocks * 512
    return total


def test_new_pages_are_zero_even_where_others_wrote() -> None:
    driver = HostDriver()
    granularity = driver.granularity
    base = driver.reserve(2 * granularity)
    pages = [driver.create_page() for _ in range(2)]
    for position, page in enumerate(pages):
        driver.map(base + position * granularity, page)
    memory = driver.tensor(base, 2 * granularity, driver)
    memory.fill_(7)
    driver.fence()
    for position, page in enumerate(pages):
        driver.unmap(base + position * granularity)
        driver.destroy_page(page)
    for position in range(2):
        driver.map(base + position * granularity, driver.create_page())
    assert int(memory.count_nonzero()) == 0


def test_a_created_page_is_committed_before_it_is_mapped() -> None:
    before = file_bytes()
    driver = HostDriver()
    pages = [driver.create_page() for _ in range(6)]
    assert file_bytes() - before == 6 * driver.granularity
    for page in pages[::2]:
        driver.destroy_page(page)
    assert file_bytes() - before == 3 * driver.granularity


def test_mapped_bytes_are_what_the_system_counts_before_any_touch() -> None:
    driver = HostDriver()
    granularity = driver.granularity
    base = driver.reserve(300 << 30)
    before = process_shmem_bytes()
    pages = [driver.create_page() for _ in range(24)]
    assert abs(process_shmem_bytes() - before) <= NOISE
    for position, page in enumerate(pages):
        driver.map(base + 5 * position * granularity, page)
    assert abs(process_shmem_bytes() - before - driver.stats().mapped_bytes) <= NOISE
    driver.fence()
    for position in range(24):
        driver.unmap(base + 5 * position * granularity)
    assert abs(process_shmem_bytes() - before) <= NOISE


def test_neighbouring_pages_become_one_kernel_mapping() -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    driver = HostDriver()
    granularity = driver.granularity
    base = driver.reserve(256 * granularity)
    before = mappings()
    pages = [driver.create_page() for _ in range(128)]
    for position, page in enumerate(pages):
        driver.map(base + position * granularity, page)
    assert mappings() - before < 10


def test_freed_memory_is_used_again_lowest_first() -> None:
    driver = HostDriver()
    pages = [driver.create_page() for _ in range(8)]
    for position in (5, 2, 6):
        driver.destroy_page(pages[position])
    again = [driver.create_page() for _ in range(4)]
    order = sorted([*(pages[position] for position in (0, 1, 3, 4, 7)), *again])
    assert [order.index(page) for page in again] == [2, 5, 6, 8]


def test_the_limit_is_a_status_and_not_a_crash() -> None:
    driver = HostDriver(limit_bytes=(3 * 2 << 20) + 5)
    pages = [driver.create_page() for _ in range(3)]
    with pytest.raises(DriverError, match="DRIVER_OUT_OF_MEMORY"):
        driver.create_page()
    driver.destroy_page(pages[0])
    driver.create_page()
    assert driver.stats().created_bytes == 6 << 20


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(DriverError, match="DRIVER_INVALID_ARGUMENT"):
        HostDriver(limit_bytes=0)


def test_large_pages_are_reported_as_the_kernel_reports_them() -> None:
    driver = HostDriver()
    granularity = driver.granularity
    base = driver.reserve(8 * granularity)
    for position in range(8):
        driver.map(base + position * granularity, driver.create_page())
    rollup = Path("/proc/self/smaps").read_text()
    at = rollup.index(f"{base:x}-")
    mapped_huge = next(line for line in rollup[at:].splitlines() if line.startswith("ShmemPmdMapped"))
    assert int(mapped_huge.split()[1]) * 1024 == driver.stats().huge_pages * granularity


def test_a_driver_that_dies_gives_everything_back() -> None:
    files, shared, fds = file_bytes(), process_shmem_bytes(), len(os.listdir("/proc/self/fd"))
    driver = HostDriver()
    base = driver.reserve(4 * driver.granularity)
    driver.map(base, driver.create_page())
    del driver
    assert (file_bytes(), len(os.listdir("/proc/self/fd"))) == (files, fds)
    assert abs(process_shmem_bytes() - shared) <= NOISE


def test_a_tensor_of_any_dtype_computes_over_mapped_pages() -> None:
    driver = HostDriver()
    base = driver.reserve(2 * driver.granularity)
    driver.map(base, driver.create_page())
    weight = driver.tensor(base, driver.granularity, driver).view(torch.float32).view(512, 1024)
    weight.copy_(torch.eye(512, 1024))
    x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x @ weight.T, x[:, :512])
