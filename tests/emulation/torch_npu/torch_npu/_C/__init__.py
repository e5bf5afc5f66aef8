"""Native calls of torch_npu: tensors over memory that the caller manages."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from torch_npu import formats
from torch_npu._C import _distributed_c10d as _distributed_c10d
from torch_npu.options import get_option as _npu_getOption
from torch_npu.options import set_option as _npu_setOption

__all__ = [
    "_NPUTaskGroupHandle",
    "_construct_NPU_Tensor_From_Storage_And_Metadata",
    "_construct_storage_from_data_pointer",
    "_distributed_c10d",
    "_npu_getOption",
    "_npu_setOption",
]


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
    """A tensor over `storage`, which has the format npu_format from now on, ND or FRACTAL_NZ.

    `described` has dtype, size, stride, storage_offset and npu_format. In FRACTAL_NZ, the tensor is contiguous and
    begins where the storage does, which holds its blocks and their padding.
    """
    name = "_construct_NPU_Tensor_From_Storage_And_Metadata"
    form, shape, dtype = described["npu_format"], tuple(described["size"]), described["dtype"]
    if form == formats.ND:
        formats.declare(storage, None)
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(storage, described["storage_offset"], shape, tuple(described["stride"]))
    if form != formats.FRACTAL_NZ:
        raise RuntimeError(f"{name}: npu_format: ND (2) and FRACTAL_NZ (29) are emulated, not {form}")
    if len(shape) < 2 or dtype not in formats.BLOCK_COLUMNS:
        raise RuntimeError(f"{name}: size: {dtype} {shape} cannot be in FRACTAL_NZ")
    needed = formats.stored_elements(shape, dtype) * dtype.itemsize
    if storage.nbytes() < needed:
        raise RuntimeError(f"{name}: storage: {storage.nbytes()} bytes, where the blocks of {shape} take {needed}")
    if described["storage_offset"] != 0 or tuple(described["stride"]) != torch.empty(shape, device="meta").stride():
        raise RuntimeError(f"{name}: stride: FRACTAL_NZ is emulated for contiguous tensors at offset 0")
    return formats.over(storage, formats.Declared(shape, dtype))


class _NPUTaskGroupHandle:
    """Of graph capture, which is not emulated; named in annotations."""

    def __init__(self) -> None:
        raise RuntimeError("torch_npu._C._NPUTaskGroupHandle is not emulated: there is no graph capture")
