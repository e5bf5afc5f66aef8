"""FRACTAL_NZ, the blocked layout in which the matrix units of an NPU read weights.

A matrix ``[K, N]`` is cut into blocks of 16 rows and C0 columns, C0 being 32 bytes' worth of elements (never fewer than
16); blocks lie column of blocks by column of blocks, each in row order: ``[N / C0, K / 16, 16, C0]``, rows and columns
padded with zeros. Leading dimensions, as that of experts, stay outermost, so that one expert is one contiguous piece.
"""

from __future__ import annotations

import torch

BLOCK_ROWS = 16
_BLOCK_ROW_BYTES = 32


def block_columns(dtype: torch.dtype) -> int:
    """C0: columns of a block."""
    return _BLOCK_ROW_BYTES // min(2, dtype.itemsize)


def storage_shape(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """The shape ``[..., N1, K1, 16, C0]`` in which ``[..., K, N]`` is stored."""
    *leading, rows, columns = shape
    across = block_columns(dtype)
    return (*leading, -(-columns // across), -(-rows // BLOCK_ROWS), BLOCK_ROWS, across)


def pack(matrices: torch.Tensor) -> torch.Tensor:
    """``[..., K, N]`` in blocks: contiguous ``[..., N1, K1, 16, C0]`` of the same dtype, on the same device."""
    *leading, rows, columns = matrices.shape
    *_, across, down, height, width = storage_shape(tuple(matrices.shape), matrices.dtype)
    padded = torch.nn.functional.pad(matrices, (0, across * width - columns, 0, down * height - rows))
    blocks = padded.reshape(*leading, down, height, across, width)
    return blocks.movedim(-2, -4).contiguous()


def unpack(blocks: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrices ``[..., K, N]`` of `shape` whose blocks these are; the inverse of `pack`."""
    *leading, rows, columns = shape
    *_, across, down, height, width = blocks.shape
    padded = blocks.movedim(-4, -2).reshape(*leading, down * height, across * width)
    return padded[..., :rows, :columns].contiguous()
