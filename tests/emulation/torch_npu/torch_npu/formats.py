"""FRACTAL_NZ, the order of elements in which the matrix units read weights, and which storage is declared to have it.

A format belongs to the storage that it was declared for, and so to whatever shares it: views, parameters, `.data`. It
does not belong to the memory: there may be storages of several formats over the same addresses. Shape and strides of a
tensor say nothing of it; in FRACTAL_NZ its memory holds blocks, and may be longer than its elements.

Where an element lies is written here as a formula of row and column, so that nothing is shared with code that cuts and
transposes.
"""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

import torch

from torch_npu.strict import check

ND = 2
"""The order in which torch lays elements out."""

FRACTAL_NZ = 29

BLOCK_ROWS = 16
BLOCK_COLUMNS = {torch.float16: 16, torch.bfloat16: 16, torch.int8: 32}
"""The columns of a block, 32 bytes of the type, never fewer than 16 columns. Other types are refused."""

_ATTRIBUTE = "_emulated_npu_declared"


class Declared(NamedTuple):
    """What a storage in FRACTAL_NZ holds: a contiguous tensor ``[..., K, N]``."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def matrix_size(self) -> int:
        """Elements that a matrix takes, padding included."""
        return stored_elements(self.shape[-2:], self.dtype)

    @property
    def padded(self) -> bool:
        return self.matrix_size != prod(self.shape[-2:])


def stored_elements(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Elements that ``[..., K, N]`` takes in FRACTAL_NZ: rows and columns are padded to whole blocks."""
    *leading, rows, columns = shape
    across = BLOCK_COLUMNS[dtype]
    return prod(leading) * (-(-rows // BLOCK_ROWS) * BLOCK_ROWS) * (-(-columns // across) * across)


@functools.cache
def _places(rows: int, columns: int, across: int) -> torch.Tensor:
    """Where each element of a matrix lies, int64 ``[rows * columns]``: column of blocks, block, row, column in it."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    blocks_down = -(-rows // BLOCK_ROWS)
    block = column // across * blocks_down + row // BLOCK_ROWS
    return ((block * BLOCK_ROWS + row % BLOCK_ROWS) * across + column % across).reshape(-1)


def declare(storage: torch.UntypedStorage, declared: Declared | None) -> None:
    """Says that `storage` is in FRACTAL_NZ, or in ND (None), from now on. Nothing is moved."""
    setattr(storage, _ATTRIBUTE, declared)


def declared(tensor: torch.Tensor) -> Declared | None:
    """What the storage of `tensor` was declared to hold in FRACTAL_NZ; None for ND."""
    if tensor.layout != torch.strided:
        return None
    found: Declared | None = getattr(tensor.untyped_storage(), _ATTRIBUTE, None)
    return found


def check_castable(tensor: torch.Tensor, argument: str) -> None:
    """Refuses what cannot be in FRACTAL_NZ."""
    check(tensor.dim() >= 2, argument, f"FRACTAL_NZ is of matrices, not {tuple(tensor.shape)}")
    check(tensor.dtype in BLOCK_COLUMNS, argument, f"{tensor.dtype} in FRACTAL_NZ is not emulated")


def in_blocks(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``[..., K, N]``, which is in ND, in FRACTAL_NZ, with the same shape and type; padding is 0."""
    rows, columns = tensor.shape[-2:]
    held = Declared(tuple(tensor.shape), tensor.dtype)
    blocks = tensor.new_zeros(prod(tensor.shape[:-2]), held.matrix_size)
    blocks[:, _places(rows, columns, BLOCK_COLUMNS[tensor.dtype])] = tensor.reshape(-1, rows * columns)
    return over(blocks.untyped_storage(), held)


def over(storage: torch.UntypedStorage, held: Declared) -> torch.Tensor:
    """The tensor over `storage`, which becomes one in FRACTAL_NZ."""
    declare(storage, held)
    strides = [prod(held.shape[dimension + 1 :]) for dimension in range(len(held.shape))]
    return torch.empty(0, dtype=held.dtype).set_(storage, 0, held.shape, strides)


def in_order(tensor: torch.Tensor, argument: str) -> torch.Tensor:
    """`tensor` itself if it is in ND, else a copy in ND. Of FRACTAL_NZ, only a whole tensor can be read, or its
    transpose: a part of it is not where its strides say.
    """
    held = declared(tensor)
    if held is None:
        return tensor
    whole = tensor.numel() == prod(held.shape) and tensor.storage_offset() == 0 and tensor.dtype == held.dtype
    check(whole, argument, f"a part or a reinterpretation of a tensor in FRACTAL_NZ, {held.dtype} {held.shape}")
    matrices = torch.stack([_unblocked(tensor, held, number) for number in range(prod(held.shape[:-2]))])
    return matrices.reshape(held.shape).as_strided(tensor.shape, tensor.stride())


def check_stack(tensor: torch.Tensor, argument: str) -> None:
    """Refuses what `matrix_of` cannot read. Of FRACTAL_NZ that is all but a run of whole matrices; where matrices are
    padded, the run must begin with the first, for the offset of a tensor counts elements without padding.
    """
    held = declared(tensor)
    if held is None:
        return
    whole = tensor.shape[-2:] == held.shape[-2:] and tensor.is_contiguous() and tensor.dtype == held.dtype
    offset = tensor.storage_offset()
    whole = whole and offset % prod(held.shape[-2:]) == 0 and (offset == 0 or not held.padded)
    check(whole, argument, f"a part or a reinterpretation of a tensor in FRACTAL_NZ, {held.dtype} {held.shape}")


def matrix_of(stack: torch.Tensor, number: int) -> torch.Tensor:
    """Matrix `number` ``[K, N]`` of ``[E, K, N]`` in order. No other matrix's memory is read. See `check_stack`."""
    held = declared(stack)
    if held is None:
        return stack[number]
    return _unblocked(stack, held, stack.storage_offset() // prod(held.shape[-2:]) + number)


def _unblocked(tensor: torch.Tensor, held: Declared, number: int) -> torch.Tensor:
    rows, columns = held.shape[-2:]
    memory = torch.empty(0, dtype=held.dtype).set_(
        tensor.untyped_storage(), number * held.matrix_size, (held.matrix_size,), (1,)
    )
    return memory[_places(rows, columns, BLOCK_COLUMNS[held.dtype])].view(rows, columns)
