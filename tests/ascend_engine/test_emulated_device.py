"""The emulated device: where tensors go, what it says of its memory, and tensors over memory of the ACL driver."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
import torch_npu

from npu_weave.memory.acl import AclDriver

MiB = 1 << 20
NPU = torch.device("npu", 0)

FACTORIES = {
    "zeros": lambda: torch.zeros(2, device="npu"),
    "full": lambda: torch.full((2,), 1.0, device=NPU),
    "arange": lambda: torch.arange(3, device=0),
    "tensor": lambda: torch.tensor([1, 2], device=NPU),
    "randn": lambda: torch.randn(2, device=NPU),
    "randperm": lambda: torch.randperm(3, device=NPU),
    "like": lambda: torch.zeros_like(torch.ones(2), device=NPU),
    "to": lambda: torch.ones(2).to(NPU),
    "to type": lambda: torch.ones(2).to("npu:1", torch.int32),
    "npu": lambda: torch.ones(2).npu(),
    "module": lambda: torch.nn.Linear(2, 2, device=NPU).weight.data,
    "pinned": lambda: torch.zeros(2, pin_memory=True).pin_memory(),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_tensors_lie_in_plain_memory(factory: str) -> None:
    made = [FACTORIES[factory]()]
    thread = threading.Thread(target=lambda: made.append(FACTORIES[factory]()))
    thread.start()
    thread.join()
    assert [tensor.device.type for tensor in made] == ["cpu", "cpu"]
    assert [tensor.shape for tensor in made] == [made[0].shape] * 2


def test_device_contexts_reach_the_wrapped_factories() -> None:
    with torch.device("meta"):
        assert torch.zeros(2).is_meta
    with NPU:
        assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_it_is_the_accelerator() -> None:
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    torch.accelerator.synchronize()
    assert torch.npu is torch_npu.npu
    assert torch.npu.is_available()
    with torch.npu.device(1):
        assert torch.npu.current_device() == 1
    assert torch.npu.current_device() == 0
    with pytest.raises(RuntimeError, match="there are 2 devices"):
        torch.npu.set_device(2)


def test_operators_registered_for_the_device_are_called() -> None:
    library = torch.library.Library("emulated_device_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "PrivateUse1")
    assert torch.ops.emulated_device_test.twice(torch.ones(2, device=NPU)).tolist() == [2, 2]


def test_histogram_of_integers() -> None:
    values = torch.tensor([0, 3, 3, 1], dtype=torch.int32)
    counted = torch.histc(values, bins=4, min=0, max=4)
    assert counted.tolist() == [1, 1, 0, 2]
    assert counted.dtype == torch.int32
    assert torch.histc(values.float(), bins=4, min=0, max=4).tolist() == [1, 1, 0, 2]
    with pytest.raises(NotImplementedError, match="bins of width 1"):
        torch.histc(values, bins=2, min=0, max=4)


def test_streams_and_events() -> None:
    stream, event = torch.npu.Stream(), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() is stream
        event.record()
    assert torch.npu.current_stream() is torch.npu.default_stream()
    assert event.query()
    with pytest.raises(RuntimeError, match="both events must be recorded"):
        event.elapsed_time(torch.npu.Event())


NEED_MORE = {
    "NPUGraph": torch.npu.NPUGraph,
    "ExternalEvent": torch.npu.ExternalEvent,
    "MemPool": torch.npu.memory.MemPool,
    "NPUPluggableAllocator": torch.npu.memory.NPUPluggableAllocator,
    "_NPUTaskGroupHandle": torch_npu._C._NPUTaskGroupHandle,
    "ProcessGroupHCCL": torch_npu._C._distributed_c10d.ProcessGroupHCCL,
}


@pytest.mark.parametrize("name", NEED_MORE)
def test_names_that_are_only_imported_refuse(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} is not emulated"):
        NEED_MORE[name]()


def test_free_memory_falls_with_tensors_and_with_physical_memory() -> None:
    torch.npu.set_device(0)
    gc.collect()
    free, total = torch.npu.mem_get_info()
    allocated = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    tensor = torch.empty(64 * MiB, dtype=torch.uint8, device=NPU)
    held = torch.npu.memory_allocated()
    assert 64 * MiB <= held - allocated < 66 * MiB
    assert free - torch.npu.mem_get_info()[0] == held - allocated
    del tensor
    assert torch.npu.memory_allocated() < held - 63 * MiB
    assert torch.npu.max_memory_allocated() == torch.npu.memory_stats()["allocated_bytes.all.peak"] >= held
    before = torch.npu.mem_get_info()[0] + torch.npu.memory_allocated()
    driver = AclDriver(0)
    pages = [driver.create_page() for _ in range(3)]
    assert before - torch.npu.mem_get_info()[0] - torch.npu.memory_allocated() == driver.granularity * 3
    for page in pages:
        driver.destroy_page(page)
    assert torch.npu.mem_get_info()[0] + torch.npu.memory_allocated() == before
    assert total == torch.npu.get_device_properties().total_memory


def described(**changed: Any) -> dict[str, Any]:
    shape = {"dtype": torch.float32, "size": [2, 3], "stride": [3, 1], "storage_offset": 0, "npu_format": 2}
    return shape | changed


def test_tensors_over_memory_of_others() -> None:
    memory = torch.arange(12, dtype=torch.float32)
    construct = torch_npu._C._construct_storage_from_data_pointer
    storage = construct(memory.data_ptr(), torch.device("privateuseone", 0), 24)
    tensor = torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(described(), storage)
    assert tensor.data_ptr() == memory.data_ptr()
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor += 1
    assert memory[:7].tolist() == [1, 2, 3, 4, 5, 6, 6]
    with pytest.raises(RuntimeError, match="device: cuda:0 is not an NPU"):
        construct(memory.data_ptr(), torch.device("cuda", 0), 24)
