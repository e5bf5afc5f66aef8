"""Tensors over mapped NPU memory, in the formats kernels declare. Outside the engine, only this file knows torch_npu.

Weights have two tensors over the same memory. The one for kernels declares shape and format. Everything that moves data
goes through the other, plain bytes: writing through a FRACTAL_NZ tensor makes torch_npu put a storage of its own under
it, and the kernel would go on with memory that nobody manages. `check_seated` finds that.
"""

from __future__ import annotations

import enum
from math import prod
from types import ModuleType

import torch

from npu_weave.errors import ConfigError, IntegrityError
from npu_weave.memory import fractal_nz


class NpuFormat(enum.IntEnum):
    """Formats of torch_npu that weights come in (aclFormat)."""

    ND = 2
    FRACTAL_NZ = 29


_owners: list[object] = []


def from_pointer(address: int, nbytes: int, owner: object, device: torch.device) -> torch.Tensor:
    """A uint8 tensor ``[nbytes]`` over NPU memory, for a torch_npu whose from_blob we do not know.

    Nothing tells when its last view dies, so `owner` is kept until the process ends.
    """
    _owners.append(owner)
    return _construct(address, nbytes, (nbytes,), torch.uint8, NpuFormat.ND, device)


def declare(memory: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, form: NpuFormat) -> torch.Tensor:
    """A tensor for kernels over the bytes of `memory`, which must outlive it.

    Args:
        memory: contiguous NPU tensor; for FRACTAL_NZ, ``[..., N1, K1, 16, C0]`` of what `shape` needs.
        shape: the shape kernels see, ``[experts, K, N]``.
        form: the format they see.

    Raises ConfigError ``TENSOR_SHAPE`` when `shape` does not fill `memory`.
    """
    stored = shape if form is NpuFormat.ND else fractal_nz.storage_shape(shape, dtype)
    needed = prod(stored) * dtype.itemsize
    if needed != memory.nbytes:
        raise ConfigError("TENSOR_SHAPE", f"{form.name} {shape}", expected=f"{needed} bytes", got=str(memory.nbytes))
    return _construct(memory.data_ptr(), needed, shape, dtype, form, memory.device)


def check_seated(declared: torch.Tensor, memory: torch.Tensor) -> None:
    """Raises IntegrityError ``TENSOR_RESEATED`` when `declared` no longer lies over `memory`."""
    if declared.data_ptr() != memory.data_ptr():
        raise IntegrityError(
            "TENSOR_RESEATED",
            f"weights {tuple(declared.shape)}",
            expected=f"storage at {memory.data_ptr():#x}",
            got=f"{declared.data_ptr():#x}",
            remedy="write expert weights through their bytes only; something copied or cast them in place",
        )


def empty_task_queue() -> None:
    """Waits until torch_npu has launched all it was asked for and the device has done it.

    torch_npu launches from a thread of its own; the runtime's own synchronisation does not know what waits there.
    """
    _torch_npu().npu.synchronize()


def format_of(tensor: torch.Tensor) -> NpuFormat:
    """The format that `tensor` declares. Raises ConfigError ``NPU_FORMAT`` for one that weights do not come in."""
    form = int(_torch_npu().get_npu_format(tensor))
    if form not in list(NpuFormat):
        known = " or ".join(f"{each.name} ({each.value})" for each in NpuFormat)
        raise ConfigError("NPU_FORMAT", f"weights {tuple(tensor.shape)}", expected=known, got=f"format {form}")
    return NpuFormat(form)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of `tensor` in the order in which they lie in memory; the inverse of `declare`.

    That is `tensor` itself in ND, and for FRACTAL_NZ ``[..., N1, K1, 16, C0]`` over the same memory, which lives as
    long as what is returned.
    """
    if format_of(tensor) is NpuFormat.ND:
        return tensor
    stored = fractal_nz.storage_shape(tuple(tensor.shape), tensor.dtype)
    nbytes = prod(stored) * tensor.itemsize
    memory = _construct(tensor.data_ptr(), nbytes, stored, tensor.dtype, NpuFormat.ND, tensor.device)
    memory.npu_weave_owner = tensor  # type: ignore[attr-defined]
    return memory


def _construct(
    address: int, nbytes: int, shape: tuple[int, ...], dtype: torch.dtype, form: NpuFormat, device: torch.device
) -> torch.Tensor:
    native = _torch_npu()._C
    storage = native._construct_storage_from_data_pointer(address, device, nbytes)
    strides = [prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    described = {"dtype": dtype, "size": list(shape), "stride": strides, "storage_offset": 0, "npu_format": form.value}
    made: torch.Tensor = native._construct_NPU_Tensor_From_Storage_And_Metadata(described, storage)
    return made


def _torch_npu() -> ModuleType:
    import torch_npu

    module: ModuleType = torch_npu
    return module
