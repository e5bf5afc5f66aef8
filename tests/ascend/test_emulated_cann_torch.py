"""The real torch_npu binary on an emulated runtime: tensors, kernels, formats, its own allocator, and its errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from emulation.cann.acl import DEVICE_FAULT, Acl, MiB, properties
from emulation.cann.process import lines, run

pytestmark = [pytest.mark.emulated_ascend, pytest.mark.usefixtures("torch_npu")]

PAGE = 2 * MiB

# Each is computed on the CPU by torch itself and on the NPU through torch_npu.
OPERATIONS: dict[str, Callable[[str], torch.Tensor]] = {
    "zeros": lambda on: torch.zeros(3, device=on),
    "ones": lambda on: torch.ones(3, 4, dtype=torch.bfloat16, device=on),
    "full": lambda on: torch.full((3,), 7, device=on),
    "fill": lambda on: torch.empty(3, device=on).fill_(2.5),
    "arange": lambda on: torch.arange(3, 10, 2, device=on),
    "cast": lambda on: torch.arange(6.0).to(on).to(torch.int32),
    "bfloat16": lambda on: (torch.arange(6.0).to(on) / 3).bfloat16(),
    "transpose": lambda on: torch.arange(12.0).view(3, 4).to(on).t().contiguous(),
    "narrow": lambda on: torch.arange(12.0).view(3, 4).to(on).narrow(1, 1, 2).clone(),
    "expand": lambda on: torch.arange(3.0).to(on).expand(2, 3) + 0,
    "add": lambda on: torch.arange(3.0).to(on) + 2 * torch.ones(3).to(on) - 1,
    "rsub": lambda on: 1 - torch.arange(3.0).to(on),
    "in place": lambda on: torch.ones(3).to(on).mul_(3).add_(1) / 2,
    "double": lambda on: torch.ones(3, dtype=torch.float64).to(on) + 1,
    "silu": lambda on: torch.nn.functional.silu(torch.arange(3.0).to(on)),
    "compare": lambda on: torch.arange(4).to(on) >= 2,
    "equal": lambda on: torch.tensor(torch.equal(torch.arange(4).to(on), torch.arange(4).to(on))),
    "where": lambda on: torch.where(torch.tensor([True, False]).to(on), torch.ones(2).to(on), torch.zeros(2).to(on)),
    "matmul": lambda on: torch.arange(12.0).view(3, 4).to(on) @ torch.arange(20.0).view(4, 5).to(on),
    "bmm": lambda on: torch.bmm(torch.arange(24.0).view(2, 3, 4).to(on), torch.arange(40.0).view(2, 4, 5).to(on)),
    "linear": lambda on: torch.nn.functional.linear(torch.ones(2, 3).to(on), torch.arange(12.0).view(4, 3).to(on)),
    "sum": lambda on: torch.arange(12.0).view(3, 4).to(on).sum(1),
    "mean": lambda on: torch.arange(12.0).to(on).mean(),
    "cumsum": lambda on: torch.arange(5).to(on).cumsum(0),
    "softmax": lambda on: torch.arange(3.0).to(on).softmax(0),
    "max": lambda on: torch.arange(3.0).to(on).max(),
    "any": lambda on: (torch.arange(3.0).to(on) > 1).any(),
    "index select": lambda on: torch.arange(12.0).view(3, 4).to(on).index_select(1, torch.tensor([0, 2]).to(on)),
    "index": lambda on: torch.arange(12.0).view(3, 4).to(on)[torch.tensor([0, 2]).to(on)],
    "index of a column": lambda on: torch.arange(12.0).view(3, 4).to(on)[:, torch.tensor([0, 2]).to(on)],
    "index put": lambda on: (
        torch.zeros(3, 4).to(on).index_put_((torch.tensor([0, 2]).to(on),), torch.ones(2, 4).to(on))
    ),
    "gather": lambda on: torch.arange(12.0).view(3, 4).to(on).gather(1, torch.tensor([[0], [2], [1]]).to(on)),
    "scatter": lambda on: (
        torch.zeros(3, 4).to(on).scatter(1, torch.tensor([[2], [1], [0]]).to(on), torch.ones(3, 1).to(on))
    ),
    "cat": lambda on: torch.cat([torch.ones(2).to(on), torch.zeros(2).to(on)]),
    "sort": lambda on: torch.tensor([3.0, 1, 2]).to(on).sort().indices,
    "topk": lambda on: torch.tensor([3.0, 1, 2]).to(on).topk(2).values,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_the_cpu_gives(name: str) -> None:
    on_npu = OPERATIONS[name]("npu")
    assert on_npu.device.type == "npu" or on_npu.dim() == 0
    torch.testing.assert_close(on_npu.cpu(), OPERATIONS[name]("cpu"))


def test_there_are_two_devices_and_copies_between_them(torch_npu: ModuleType) -> None:
    assert torch.npu.device_count() == 2
    values = torch.randn(1000)
    first = values.to("npu:0")
    second = first.to("npu:1")
    assert second.device.index == 1
    torch.npu.synchronize(1)
    torch.testing.assert_close((second + 1).cpu(), values + 1)
    first.fill_(0)
    torch.testing.assert_close(second.cpu(), values)


def test_views_share_memory() -> None:
    whole = torch.zeros(4, 6, device="npu")
    whole[1:3, 2:4] = torch.ones(2, 2, device="npu")
    whole.view(-1)[23] = 5
    expected = torch.zeros(4, 6)
    expected[1:3, 2:4] = 1
    expected[3, 5] = 5
    torch.testing.assert_close(whole.cpu(), expected)


def test_pinned_memory_is_copied_without_waiting() -> None:
    source = torch.arange(1000.0).pin_memory()
    copied = source.to("npu", non_blocking=True)
    back = torch.empty(1000).pin_memory()
    back.copy_(copied, non_blocking=True)
    torch.npu.synchronize()
    assert torch.equal(back, source)


@pytest.mark.parametrize("waits", [True, False])
def test_streams_are_ordered_by_events_only(waits: bool) -> None:
    (seen,) = lines(
        f"""
        a, b = torch.zeros(4, device="npu"), torch.zeros(4, device="npu")
        one = torch.ones(4, device="npu")
        torch.npu.synchronize()
        writer, reader = torch.npu.Stream(), torch.npu.Stream()
        with torch.npu.stream(writer):
            for _ in range(5):
                a.add_(one)
            done = writer.record_event()
        with torch.npu.stream(reader):
            if {waits}:
                reader.wait_event(done)
            b.copy_(a)
        torch.npu.synchronize()
        print(int(b.cpu()[0]))
        """,
        torch=True,
        task_delay_us=50_000,
    )
    assert (seen == "5") == waits


def test_too_large_a_tensor_is_out_of_memory() -> None:
    seen = lines(
        """
        kept = torch.ones(20 << 20, dtype=torch.uint8, device="npu")
        try:
            torch.empty(60 << 20, dtype=torch.uint8, device="npu")
        except torch.OutOfMemoryError as error:
            print("64.00 MiB total capacity" in str(error))
        print(int(kept.cpu().sum()) == 20 << 20)
        """,
        torch=True,
        memory_bytes=64 * MiB,
    )
    assert seen == ["True", "True"]


def test_expandable_segments_of_torch_npu_work() -> None:
    """torch_npu's own allocator over virtual memory: a caller of these rules that we did not write."""
    seen = lines(
        """
        tensors = [torch.full((5 << 20,), value, device="npu") for value in range(4)]
        print(all(bool((tensor == value).all()) for value, tensor in enumerate(tensors)))
        print(acl.calls("aclrtMalloc"), acl.calls("aclrtReserveMemAddress"), acl.calls("aclrtMapMem") > 0)
        mapped = acl.calls("aclrtMapMem")
        del tensors
        torch.npu.empty_cache()
        print(acl.calls("aclrtUnmapMem") == mapped)
        """,
        torch=True,
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
    )
    assert seen[0] == "True"
    assert seen[1].split()[2] == "True"
    assert seen[1].split()[0] == "0"
    assert seen[2] == "True"


def tensor_at(torch_npu: ModuleType, address: int, sizes: list[int]) -> torch.Tensor:
    """A bfloat16 tensor over memory that torch_npu did not allocate."""
    strides = torch.empty(sizes, device="meta").stride()
    count = torch.Size(sizes).numel()
    storage = torch_npu._C._construct_storage_from_data_pointer(address, torch.device("npu:0"), 2 * count)
    description = {"dtype": torch.bfloat16, "size": sizes, "stride": list(strides), "storage_offset": 0}
    made = torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(description | {"npu_format": 2}, storage)
    assert isinstance(made, torch.Tensor)
    return made


def test_a_tensor_over_mapped_pages(acl: Acl, torch_npu: ModuleType) -> None:
    base = acl.reserve(4 * PAGE)
    weights = tensor_at(torch_npu, base, [4, 1024, 1024])  # an expert a page
    for expert in (1, 3):
        acl.map(base + expert * PAGE, PAGE, acl.create(PAGE, properties()))
    values = torch.randn(1024, 1024).bfloat16()
    weights[1].copy_(values)
    weights[3].copy_(weights[1] * 2)
    torch.testing.assert_close(weights[3].cpu(), values * 2)
    chosen = torch.index_select(weights, 0, torch.tensor([3, 1], device="npu")).cpu()
    torch.testing.assert_close(chosen, torch.stack([values * 2, values]))
    with pytest.raises(RuntimeError, match="no memory under it"):
        weights[0].copy_(values)


@pytest.mark.parametrize("row", [0, 2])
def test_a_kernel_over_an_unmapped_row_is_a_device_fault(row: int) -> None:
    done = run(
        f"""
        base = acl.reserve(8 * MiB); acl.map(base, 2 * MiB, acl.create(2 * MiB))
        storage = torch_npu._C._construct_storage_from_data_pointer(base, torch.device("npu:0"), 8 * MiB)
        weights = torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(
            dict(dtype=torch.uint8, size=[4, 2 * MiB], stride=[2 * MiB, 1], storage_offset=0, npu_format=2), storage)
        chosen = torch.index_select(weights, 0, torch.tensor([0, {row}], device="npu"))
        try:
            torch.npu.synchronize(); print("no error")
        except RuntimeError as error:
            print("error code is {DEVICE_FAULT}" in str(error))
        """,
        torch=True,
    )
    assert done.stdout.split() == (["no", "error"] if row == 0 else ["True"]), done.stderr
    assert ("device fault" in done.stderr) == (row != 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_fractal_nz_and_back(torch_npu: ModuleType, dtype: torch.dtype) -> None:
    torch.npu.config.allow_internal_format = True
    columns = 32 if dtype == torch.int8 else 16
    values = torch.randint(-100, 100, (2, 20, 40)).to(dtype)
    packed = torch_npu.npu_format_cast(values.npu(), 29)
    assert torch_npu.get_npu_format(packed) == torch_npu.Format.FRACTAL_NZ
    assert packed.shape == values.shape
    assert torch.equal(torch_npu.npu_format_cast(packed, 2).cpu(), values)
    torch.npu.synchronize()
    stored = torch.zeros(2, -(-40 // columns), 2, 16, columns, dtype=dtype)
    for k in range(20):
        for n in range(40):
            stored[:, n // columns, k // 16, k % 16, n % columns] = values[:, k, n]
    raw = ctypes.string_at(packed.data_ptr(), stored.numel() * stored.element_size())
    assert raw == bytes(stored.view(torch.uint8).flatten().tolist())


def test_a_product_with_weights_in_fractal_nz(torch_npu: ModuleType) -> None:
    torch.npu.config.allow_internal_format = True
    tokens, weights = torch.randn(3, 20).bfloat16(), torch.randn(20, 40).bfloat16()
    packed = torch_npu.npu_format_cast(weights.npu(), 29)
    torch.testing.assert_close((tokens.npu() @ packed).cpu(), tokens @ weights)


def test_an_operator_that_is_not_emulated_fails_by_its_name() -> None:
    done = run(
        """
        values = torch.arange(4.0).npu()
        try:
            print(torch.cdist(values.view(2, 2), values.view(2, 2)).cpu())
        except RuntimeError as error:
            print("refused")
        try:
            print(values.cpu())
        except RuntimeError as error:
            print("and nothing is computed any more")
        """,
        torch=True,
    )
    assert done.stdout.splitlines() == ["refused", "and nothing is computed any more"], done.stderr
    assert "emulated CANN: operator Cdist is not emulated" in done.stderr


def test_a_kernel_does_not_reach_host_memory_or_another_device(acl: Acl) -> None:
    done = run(
        """
        here, there = torch.ones(4, device="npu:0"), torch.ones(4, device="npu:1")
        storage = torch_npu._C._construct_storage_from_data_pointer(there.data_ptr(), torch.device("npu:0"), 16)
        wrong = torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(
            dict(dtype=torch.float32, size=[4], stride=[1], storage_offset=0, npu_format=2), storage)
        try:
            print((here + wrong).cpu())
        except RuntimeError:
            print("refused")
        """,
        torch=True,
    )
    assert done.stdout.split() == ["refused"], done.stderr
    assert "is memory of device 1, the stream is of device 0" in done.stderr


def test_a_failure_of_the_runtime_reaches_the_caller() -> None:
    seen = lines(
        """
        values = torch.arange(4.0).npu()
        acl.fail("aclrtMemcpy", 1, 507899)
        try:
            values.cpu()
        except RuntimeError as error:
            print("507899" in str(error))
        """,
        torch=True,
    )
    assert seen == ["True"]
