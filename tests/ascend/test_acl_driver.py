"""The driver of NPUs, and tensors over its memory: the real torch_npu on an emulated runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.register_assert_rewrite("fixtures.driver_conformance")

from emulation.cann.acl import OUT_OF_MEMORY, Acl  # noqa: E402
from emulation.cann.process import run  # noqa: E402
from fixtures.driver_conformance import *  # noqa: E402, F403

from npu_weave import _C  # noqa: E402
from npu_weave.errors import CapacityError, ConfigError, DriverError  # noqa: E402
from npu_weave.memory import AclDriver, Driver, PagePool, VirtualTensor, fractal_nz, npu_tensor  # noqa: E402
from npu_weave.memory.npu_tensor import NpuFormat  # noqa: E402

pytestmark = pytest.mark.emulated_ascend

PAGE = 2 << 20
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def driver(acl: Acl, torch_npu: ModuleType) -> Driver:
    return AclDriver(0)


def weights(driver: Driver, rows: int = 8, shape: tuple[int, ...] = (96, 160)) -> VirtualTensor:
    """Rows of bfloat16 matrices in FRACTAL_NZ, held as blocks."""
    stored = fractal_nz.storage_shape(shape, torch.bfloat16)
    return VirtualTensor(PagePool(driver), rows=rows, row_shape=stored, dtype=torch.bfloat16, name="weights")


def random_bits(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**15), 2**15, shape, dtype=torch.int16).view(torch.bfloat16)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.cpu().view(torch.int16), right.cpu().view(torch.int16))


def test_it_says_what_it_is(driver: AclDriver) -> None:
    assert (driver.name, driver.granularity, str(driver.device)) == ("npu", PAGE, "npu:0")


def test_without_libascendcl_it_is_unavailable_and_says_why() -> None:
    code = "from npu_weave.memory import AclDriver; AclDriver()"
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "[DRIVER_UNAVAILABLE]" in done.stderr and "libascendcl.so" in done.stderr


def test_an_npu_that_is_not_there_is_unavailable(driver: Driver) -> None:
    with pytest.raises(DriverError, match=r"\[DRIVER_UNAVAILABLE\].*aclrtSetDevice"):
        AclDriver(7)


def test_our_declarations_are_those_of_the_headers(tmp_path: Path, torch_npu: ModuleType) -> None:
    """Sizes, offsets, values and signatures, by the compiler."""
    source = tmp_path / "compare.cpp"
    source.write_text(COMPARE)
    include = [f"-I{Path(torch_npu.__file__).parent / 'include'}", f"-I{ROOT / 'csrc' / 'vmm'}"]
    compiler = os.environ.get("CXX", "g++")
    done = subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", *include, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


COMPARE = """
#include <cstddef>
#include <type_traits>
#include "acl/acl.h"
#include "acl_api.h"
using namespace weave::vmm::acl;
static_assert(sizeof(PhysicalProperties) == sizeof(aclrtPhysicalMemProp));
static_assert(offsetof(PhysicalProperties, handle_type) == offsetof(aclrtPhysicalMemProp, handleType));
static_assert(offsetof(PhysicalProperties, allocation_type) == offsetof(aclrtPhysicalMemProp, allocationType));
static_assert(offsetof(PhysicalProperties, memory_attribute) == offsetof(aclrtPhysicalMemProp, memAttr));
static_assert(offsetof(PhysicalProperties, location) == offsetof(aclrtPhysicalMemProp, location));
static_assert(offsetof(Location, id) == offsetof(aclrtMemLocation, id));
static_assert(offsetof(Location, type) == offsetof(aclrtMemLocation, type));
static_assert(kHandleTypeNone == ACL_MEM_HANDLE_TYPE_NONE && kAllocationPinned == ACL_MEM_ALLOCATION_TYPE_PINNED);
static_assert(kMemoryHbmHuge == ACL_HBM_MEM_HUGE && kLocationDevice == ACL_MEM_LOCATION_TYPE_DEVICE);
static_assert(kGranularityMinimum == ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(kErrorMemoryAllocation == ACL_ERROR_RT_MEMORY_ALLOCATION);
static_assert(kErrorStorageAllocation == ACL_ERROR_BAD_ALLOC);
template <typename Ours, typename Theirs> struct Alike;
template <typename R, typename S, typename... A, typename... B>
struct Alike<R (*)(A...), S (*)(B...)> {
  static constexpr bool value =
      sizeof...(A) == sizeof...(B) && ((sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>) && ...);
};
#define ALIKE(ours, theirs) static_assert(Alike<decltype(Api::ours), decltype(&theirs)>::value, #theirs)
ALIKE(set_device, aclrtSetDevice);
ALIKE(get_current_context, aclrtGetCurrentContext);
ALIKE(set_current_context, aclrtSetCurrentContext);
ALIKE(get_granularity, aclrtMemGetAllocationGranularity);
ALIKE(reserve_address, aclrtReserveMemAddress);
ALIKE(release_address, aclrtReleaseMemAddress);
ALIKE(malloc_physical, aclrtMallocPhysical);
ALIKE(free_physical, aclrtFreePhysical);
ALIKE(map, aclrtMapMem);
ALIKE(unmap, aclrtUnmapMem);
"""

CALLS: dict[str, tuple[str, Callable[[Driver, int, int], object]]] = {
    "aclrtReserveMemAddress": ("DRIVER_OUT_OF_ADDRESS_SPACE", lambda driver, base, free: driver.reserve(PAGE)),
    "aclrtMallocPhysical": ("DRIVER_OUT_OF_MEMORY", lambda driver, base, free: driver.create_page()),
    "aclrtFreePhysical": ("DRIVER_FAILED", lambda driver, base, free: driver.destroy_page(free)),
    "aclrtMapMem": ("DRIVER_OUT_OF_MEMORY", lambda driver, base, free: driver.map(base + PAGE, free)),
    "aclrtUnmapMem": ("DRIVER_FAILED", lambda driver, base, free: driver.unmap(base)),
    "aclrtSynchronizeDevice": ("DRIVER_FAILED", lambda driver, base, free: driver.fence()),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_changes_nothing_and_works_the_next_time(call: str, acl: Acl, driver: Driver) -> None:
    code, action = CALLS[call]
    base = driver.reserve(2 * PAGE)
    driver.map(base, driver.create_page())
    free = driver.create_page()
    driver.fence()
    before = driver.stats()
    acl.fail(call, 1, code=OUT_OF_MEMORY if "OUT_OF" in code else 507899)
    with pytest.raises(DriverError, match=rf"\[{code}\].*{call}"):
        action(driver, base, free)
    assert driver.stats() == before
    action(driver, base, free)


@pytest.mark.parametrize("call", ["aclrtMallocPhysical", "aclrtMapMem"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_rows_are_mapped_all_or_none(call: str, nth: int, acl: Acl, driver: Driver) -> None:
    pool = PagePool(driver)
    tensor = VirtualTensor(pool, rows=8, row_shape=(3 << 19,), dtype=torch.uint8, name="weights")
    tensor.map_rows([0])
    tensor.row_view(0).fill_(7)
    before = driver.stats()
    acl.fail(call, nth, code=OUT_OF_MEMORY)
    with pytest.raises((DriverError, CapacityError)):
        tensor.map_rows([2, 3, 4, 5])
    assert driver.stats() == before
    pool.check_integrity()
    tensor.check_integrity()
    row = tensor.row_view(0).cpu()
    assert int(row.min()) == int(row.max()) == 7
    tensor.map_rows([2, 3, 4, 5])


def test_the_device_of_the_thread_stays_what_it_was(driver: Driver) -> None:
    other = AclDriver(1)
    torch.npu.set_device(0)
    base = other.reserve(PAGE)
    other.map(base, other.create_page())
    assert torch.npu.current_device() == 0
    memory = other.tensor(base, PAGE, other)
    memory.fill_(3)
    assert (str(memory.device), int(memory.cpu().max())) == ("npu:1", 3)


def test_rows_hold_what_is_written_and_kernels_use_it(driver: Driver) -> None:
    matrices = torch.randn(3, 160, 96).bfloat16()
    tensor = VirtualTensor(PagePool(driver), rows=8, row_shape=(160, 96), dtype=torch.bfloat16, name="weights")
    tensor.map_rows([1, 4, 6])
    for row, matrix in zip((1, 4, 6), matrices, strict=True):
        tensor.row_view(row).copy_(matrix)
    inputs = torch.randn(5, 160).bfloat16()
    for row, matrix in zip((1, 4, 6), matrices, strict=True):
        assert same(tensor.tensor[row], matrix)
        assert same(inputs.npu() @ tensor.tensor[row], inputs @ matrix)


def test_kernels_see_fractal_nz_where_bytes_were_written(driver: Driver, torch_npu: ModuleType) -> None:
    """The device's own cast back to ND is the kernel: it must find what was packed, row by row."""
    tensor = weights(driver)
    tensor.map_rows(range(8))
    matrices = random_bits(8, 96, 160)
    for row in range(8):
        tensor.row_view(row).copy_(fractal_nz.pack(matrices[row]))
    kernel = npu_tensor.declare(tensor.tensor, (8, 96, 160), torch.bfloat16, NpuFormat.FRACTAL_NZ)
    assert torch_npu.get_npu_format(kernel) == NpuFormat.FRACTAL_NZ
    assert (tuple(kernel.shape), kernel.data_ptr()) == ((8, 96, 160), tensor.tensor.data_ptr())
    assert same(torch_npu.npu_format_cast(kernel, NpuFormat.ND.value), matrices)
    tensor.row_view(5).copy_(fractal_nz.pack(matrices[2]))
    assert same(torch_npu.npu_format_cast(kernel, NpuFormat.ND.value)[5], matrices[2])
    npu_tensor.check_seated(kernel, tensor.tensor)


def test_a_tensor_that_does_not_fill_its_memory_is_refused(driver: Driver) -> None:
    with pytest.raises(ConfigError, match=r"\[TENSOR_SHAPE\]"):
        npu_tensor.declare(weights(driver).tensor, (9, 96, 160), torch.bfloat16, NpuFormat.FRACTAL_NZ)


def test_writing_through_the_tensor_of_the_kernels_is_found_out() -> None:
    """torch_npu copies into an NZ tensor by putting another storage under it; in a process of its own, as the copy
    itself is not emulated."""
    done = run(
        """
        from npu_weave.errors import IntegrityError
        from npu_weave.memory import AclDriver, PagePool, VirtualTensor, npu_tensor
        pool = PagePool(AclDriver(0))
        tensor = VirtualTensor(pool, rows=8, row_shape=(10, 6, 16, 16), dtype=torch.bfloat16, name="w")
        tensor.map_rows(range(8))
        kernel = npu_tensor.declare(tensor.tensor, (8, 96, 160), torch.bfloat16, npu_tensor.NpuFormat.FRACTAL_NZ)
        npu_tensor.check_seated(kernel, tensor.tensor)
        kernel.copy_(torch.zeros(8, 96, 160).bfloat16().npu())
        try:
            npu_tensor.check_seated(kernel, tensor.tensor)
        except IntegrityError as error:
            print(error.code, flush=True)
        """,
        torch=True,
    )
    assert done.stdout == "TENSOR_RESEATED\n", done.stderr


def test_our_packing_is_the_devices(torch_npu: ModuleType) -> None:
    before = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT")
    torch_npu.npu.config.allow_internal_format = True  # without it the cast keeps ND
    try:
        matrices = random_bits(2, 48, 80)
        cast = torch_npu.npu_format_cast(matrices.npu(), NpuFormat.FRACTAL_NZ.value)
    finally:
        torch_npu.npu.config.allow_internal_format = before in ("enable", b"enable")
    assert (npu_tensor.format_of(cast), npu_tensor.format_of(matrices.npu())) == (NpuFormat.FRACTAL_NZ, NpuFormat.ND)
    memory = npu_tensor.memory_of(cast)
    assert memory.data_ptr() == cast.data_ptr()
    assert same(memory, fractal_nz.pack(matrices))


def test_tensors_without_the_from_blob_of_torch_npu(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "npu_memory_tensor", lambda *arguments: None)
    tensor = VirtualTensor(PagePool(driver), rows=4, row_shape=(PAGE,), dtype=torch.uint8, name="weights")
    tensor.map_rows([2])
    tensor.row_view(2).fill_(9)
    assert int(tensor.tensor[2].cpu().min()) == 9
    assert tensor.tensor.data_ptr() % PAGE == 0


def test_a_kernel_over_a_row_without_memory_is_a_device_error() -> None:
    done = run(
        """
        from npu_weave.memory import AclDriver, PagePool, VirtualTensor
        tensor = VirtualTensor(PagePool(AclDriver(0)), rows=4, row_shape=(1 << 20,), dtype=torch.bfloat16, name="w")
        tensor.map_rows([0, 1])
        for row in (0, 1):
            tensor.row_view(row).fill_(1)
        torch.npu.synchronize()
        print("mapped", flush=True)
        torch.index_select(tensor.tensor, 0, torch.tensor([0, 3]).npu())
        torch.npu.synchronize()
        print("nobody noticed")
        """,
        torch=True,
    )
    assert done.returncode != 0 and done.stdout == "mapped\n", done.stdout
    assert "507015" in done.stderr


@pytest.mark.parametrize(
    ("fence", "expected"), [("super(AclDriver, driver).fence()", "507015"), ("driver.fence()", "0")]
)
def test_a_fence_waits_for_what_torch_npu_has_not_launched_yet(fence: str, expected: str) -> None:
    """The thread that launches is far behind when the page goes away; the runtime alone knows nothing of it."""
    done = run(
        f"""
        from npu_weave.memory import AclDriver
        driver = AclDriver(0)
        page = driver.granularity
        base, handle = driver.reserve(page), driver.create_page()
        driver.map(base, handle)
        little = driver.tensor(base, page, driver)[:16]
        for _ in range(5):
            little.fill_(1)
        {fence}
        driver.unmap(base)
        try:
            acl.synchronize(); torch.npu.synchronize(); print(0)
        except Exception as error:
            print("507015" if "507015" in str(error) else error)
        import os; os._exit(0)
        """,
        torch=True,
        launch_delay_us=100_000,
    )
    assert done.stdout.split() == [expected], done.stderr
