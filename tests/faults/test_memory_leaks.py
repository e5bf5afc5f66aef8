"""Loads and unloads by the thousand: descriptors, kernel mappings and memory come back; a leak would be seen."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from npu_weave.errors import CapacityError
from npu_weave.memory import HostDriver, PagePool, VirtualTensor, process_shmem_bytes

PAGE = 2 << 20
CYCLES = int(os.environ.get("WEAVE_LEAK_CYCLES", "1000"))


@dataclass(frozen=True)
class Held:
    """What the process holds, by the operating system's count."""

    descriptors: int
    kernel_mappings: int
    shmem_bytes: int
    file_bytes: int

    @staticmethod
    def now() -> Held:
        gc.collect()
        fds = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        files = [fd for fd in fds if "npu-weave-pages" in os.readlink(fd)]
        return Held(
            descriptors=len(fds),
            kernel_mappings=len(Path("/proc/self/maps").read_text().splitlines()),
            shmem_bytes=process_shmem_bytes(),
            file_bytes=sum(os.stat(fd).st_blocks * 512 for fd in files),
        )

    def grown_to(self, later: Held) -> list[str]:
        """What grew, beyond what the interpreter and the allocator do on their own."""
        slack = Held(descriptors=0, kernel_mappings=8, shmem_bytes=512 << 10, file_bytes=0)
        return [
            field
            for field in ("descriptors", "kernel_mappings", "shmem_bytes", "file_bytes")
            if getattr(later, field) - getattr(self, field) > getattr(slack, field)
        ]


def tensor_over(pool: PagePool) -> VirtualTensor:
    return VirtualTensor(pool, rows=8, row_shape=(3 * PAGE // 8,), dtype=torch.float32, name="weight")


def test_thousand_cycles_of_map_and_unmap_leave_nothing() -> None:
    pool = PagePool(HostDriver(), limit_bytes=8 * PAGE)
    tensor = tensor_over(pool)

    def cycle(turn: int) -> None:
        rows = [turn % 8, (turn + 1 + turn // 8) % 8] if turn // 8 % 8 != 7 else [turn % 8]
        tensor.map_rows(set(rows))
        tensor.row_view(rows[0])[::1024].fill_(turn)
        if turn % 10 == 0:
            with pytest.raises(CapacityError):
                tensor.map_rows(set(range(8)) - set(rows))
        tensor.unmap_rows(set(rows))

    for turn in range(20):
        cycle(turn)
    before = Held.now()
    for turn in range(CYCLES):
        cycle(turn)
    assert before.grown_to(Held.now()) == []
    pool.check_integrity()
    assert pool.driver.stats().pages == 0


def test_drivers_and_tensors_made_and_dropped_leave_nothing() -> None:
    def cycle() -> None:
        pool = PagePool(HostDriver())
        tensor = tensor_over(pool)
        tensor.map_rows([1, 2])
        view = tensor.row_view(2)
        tensor.close()
        del tensor, view

    for _ in range(5):
        cycle()
    before = Held.now()
    for _ in range(CYCLES // 5):
        cycle()
    assert before.grown_to(Held.now()) == []


def test_the_control_that_leaks_is_caught() -> None:
    driver = HostDriver()
    pool = PagePool(driver)
    tensor = tensor_over(pool)
    before = Held.now()
    leaked_drivers = []
    for row in (0, 2, 4, 6):
        tensor.map_rows([row])
        leaked_drivers.append(HostDriver())
    base = driver.reserve(64 * PAGE)
    for position in range(0, 32, 2):
        driver.map(base + position * PAGE, driver.create_page())
    assert before.grown_to(Held.now()) == ["descriptors", "kernel_mappings", "shmem_bytes", "file_bytes"]
