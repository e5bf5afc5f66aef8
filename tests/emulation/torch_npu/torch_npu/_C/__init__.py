"""Native calls of torch_npu: tensors over memory that the caller manages."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from torch_npu._C import _distributed_c10d as _distributed_c10d
from torch_npu.operators.formats import ND


def _construct_storage_from_data_pointer(address: int, device: torch.device, nbytes: int) -> torch.UntypedStorage:
    """A storage of `nbytes` at `address`, which must stay mapped or be left alone. Nothing is read or written."""
    if torch.device(device).type not in ("npu", "cpu"):  # the latter is what a tensor here says of itself
        raise RuntimeError(f"_construct_storage_from_data_pointer: device: {device} is not an NPU")
    if address <= 0 or nbytes <= 0:
        raise RuntimeError(f"_construct_storage_from_data_pointer: {nbytes} bytes at {address:#x}")
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


def _construct_NPU_Tensor_From_Storage_And_Metadata(
    described: Mapping[str, Any], storage: torch.UntypedStorage
) -> torch.Tensor:
    """A tensor over `storage`; `described` has dtype, size, stride, storage_offset and npu_format, which must be ND."""
    if described["npu_format"] != ND:
        raise RuntimeError(
            "_construct_NPU_Tensor_From_Storage_And_Metadata: npu_format: "
            f"only ND (2) is emulated, not {described['npu_format']}; 29 is FRACTAL_NZ"
        )
    tensor = torch.empty(0, dtype=described["dtype"])
    return tensor.set_(storage, described["storage_offset"], tuple(described["size"]), tuple(described["stride"]))


class _NPUTaskGroupHandle:
    """Of graph capture, which is not emulated; named in annotations."""

    def __init__(self) -> None:
        raise RuntimeError("torch_npu._C._NPUTaskGroupHandle is not emulated: there is no graph capture")
