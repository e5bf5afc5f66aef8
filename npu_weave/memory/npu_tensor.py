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


def check_packing(device: torch.device) -> None:
    """Compares `fractal_nz.pack` with the device's own cast of a small matrix; for the start of an engine.

    Raises ConfigError ``NZ_PACKING``: the device stores FRACTAL_NZ in another order than we do.
    """
    torch_npu = _torch_npu()
    before = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT")
    torch_npu.npu.config.allow_internal_format = True  # without it the cast keeps ND
    try:
        matrices = torch.arange(2 * 48 * 80, dtype=torch.int16).view(torch.bfloat16).view(2, 48, 80)
        cast = torch_npu.npu_format_cast(matrices.to(device), NpuFormat.FRACTAL_NZ.value)
        ours = fractal_nz.pack(matrices)
        theirs = _construct(cast.data_ptr(), ours.nbytes, tuple(ours.shape), ours.dtype, NpuFormat.ND, cast.device)
        same = torch.equal(theirs.cpu().view(torch.int16), ours.view(torch.int16))
    finally:
        torch_npu.npu.config.allow_internal_format = before in ("enable", b"enable")
    if not same:
        raise ConfigError(
            "NZ_PACKING",
            str(device),
            expected="FRACTAL_NZ in blocks of 16 x 32 bytes, column by column",
            got="another order of bytes",
            remedy="serve with weights in ND format (VLLM_ASCEND_ENABLE_NZ=0), and report the device and CANN version",
        )


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
