"""What holds for the driver of GPUs alone, on an emulated libcuda: a call that fails leaves everything as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from emulation.cuda.load import EmulatedCudaDriver, emulated_libcuda, failing, live

from npu_weave.errors import CapacityError, DriverError
from npu_weave.memory import Driver, PagePool, VirtualTensor

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a real libcuda is loaded: the conformance suite runs on it instead"
)

PAGE = 2 << 20


def in_another_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_without_libcuda_it_is_unavailable_and_says_why() -> None:
    done = in_another_process("from npu_weave.memory import CudaDriver; CudaDriver()")
    assert done.returncode == 1
    assert "[DRIVER_UNAVAILABLE] cuda:0 driver" in done.stderr and "libcuda.so.1" in done.stderr


def test_a_gpu_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(DriverError, match=r"\[DRIVER_UNAVAILABLE\] cuda:7 driver.*invalid device ordinal"):
        EmulatedCudaDriver(7)


def test_it_says_what_it_is() -> None:
    driver = EmulatedCudaDriver(1)
    assert (driver.name, driver.device, driver.granularity) == ("cuda", torch.device("cuda", 1), PAGE)


def prepared(driver: Driver) -> tuple[int, int, int]:
    """A reservation of two pages, the first mapped and fenced; base, its page, and a page that is free."""
    base = driver.reserve(2 * PAGE)
    mapped, free = driver.create_page(), driver.create_page()
    driver.map(base, mapped)
    driver.fence()
    return base, mapped, free


CALLS: dict[str, tuple[str, Callable[[Driver, int, int, int], object]]] = {
    "cuMemAddressReserve": ("DRIVER_OUT_OF_ADDRESS_SPACE", lambda driver, base, mapped, free: driver.reserve(PAGE)),
    "cuMemCreate": ("DRIVER_OUT_OF_MEMORY", lambda driver, base, mapped, free: driver.create_page()),
    "cuMemRelease": ("DRIVER_FAILED", lambda driver, base, mapped, free: driver.destroy_page(free)),
    "cuMemMap": ("DRIVER_FAILED", lambda driver, base, mapped, free: driver.map(base + PAGE, free)),
    "cuMemSetAccess": ("DRIVER_FAILED", lambda driver, base, mapped, free: driver.map(base + PAGE, free)),
    "cuMemUnmap": ("DRIVER_FAILED", lambda driver, base, mapped, free: driver.unmap(base)),
    "cuCtxSynchronize": ("DRIVER_FAILED", lambda driver, base, mapped, free: driver.fence()),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_changes_nothing_and_works_the_next_time(call: str) -> None:
    driver = EmulatedCudaDriver()
    code, action = CALLS[call]
    base, mapped, free = prepared(driver)
    before = (driver.stats(), live())
    with failing(call), pytest.raises(DriverError, match=rf"\[{code}\].*{call}"):
        action(driver, base, mapped, free)
    assert (driver.stats(), live()) == before
    action(driver, base, mapped, free)


def test_a_reservation_that_cannot_be_freed_stays_held() -> None:
    driver = EmulatedCudaDriver()
    base = driver.reserve(PAGE)
    with failing("cuMemAddressFree"), pytest.raises(DriverError, match="cuMemAddressFree"):
        driver.release(base)
    assert driver.stats().reservations == 1
    driver.release(base)
    assert driver.stats().reservations == 0


def test_every_call_leaves_the_stack_of_contexts_as_it_was() -> None:
    library = emulated_libcuda()
    depth = library.emulated_cuda_contexts()
    driver = EmulatedCudaDriver()
    for call, (_, action) in CALLS.items():
        base, mapped, free = prepared(driver)
        with failing(call), pytest.raises(DriverError):
            action(driver, base, mapped, free)
        action(driver, base, mapped, free)
    assert library.emulated_cuda_contexts() == depth


def test_the_end_of_a_driver_gives_everything_back() -> None:
    before = live()
    driver = EmulatedCudaDriver()
    prepared(driver)
    assert live() > before
    del driver
    assert live() == before


def test_the_memory_of_the_device_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATED_CUDA_BYTES", str(5 * PAGE))
    driver = EmulatedCudaDriver(1)
    pages = [driver.create_page() for _ in range(5)]
    with pytest.raises(DriverError, match=r"\[DRIVER_OUT_OF_MEMORY\].*cuMemCreate: out of memory"):
        driver.create_page()
    driver.destroy_page(pages.pop())
    driver.create_page()


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_rows_are_mapped_all_or_none(call: str, nth: int) -> None:
    driver = EmulatedCudaDriver()
    pool = PagePool(driver)
    tensor = VirtualTensor(pool, rows=8, row_shape=(3 << 19,), dtype=torch.uint8, name="weights")
    tensor.map_rows([0])
    tensor.row_view(0).fill_(7)
    before = (driver.stats(), live())
    with failing(call, nth), pytest.raises((DriverError, CapacityError)):
        tensor.map_rows([2, 3, 4, 5])  # 6 MiB from 3 MiB on: four pages, the first shared with nobody
    assert (driver.stats(), live()) == before
    pool.check_integrity()
    tensor.check_integrity()
    assert int(tensor.row_view(0).min()) == int(tensor.row_view(0).max()) == 7
    tensor.map_rows([2, 3, 4, 5])


def test_a_hole_faults() -> None:
    done = in_another_process(
        "from emulation.cuda.load import EmulatedCudaDriver as D; d = D(); base = d.reserve(4 << 20);"
        "d.map(base, d.create_page()); memory = d.tensor(base, 4 << 20, d); memory[:2 << 20].fill_(1);"
        "print('mapped', flush=True); memory[(2 << 20) - 1 : (2 << 20) + 1].sum()"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "mapped\n"), done.stderr
