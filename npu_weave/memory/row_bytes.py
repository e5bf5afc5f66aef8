"""Writing rows, and whether they hold what they should, bit by bit, on any device; copying on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from npu_weave import _C, turns


def same_bits(held: torch.Tensor, meant: torch.Tensor) -> bool:
    """Whether a contiguous row and what it should hold, which may be on the host, agree in every bit, NaN included."""
    meant = meant.contiguous()
    if held.is_cpu:
        return _C.same_bytes(held, meant)
    words = torch.int64 if held.nbytes % 8 == 0 and held.data_ptr() % 8 == 0 else torch.uint8
    moved = meant.to(held.device)
    return torch.equal(held.reshape(-1).view(words), moved.reshape(-1).view(words))


def write_bits(row: torch.Tensor, source: torch.Tensor) -> bool:
    """Write `source`, which may be on the host, into a contiguous row, and read it back.

    Returns whether the row now holds it, in every bit; a row that does not may be written in part.
    """
    if row.is_cpu and source.is_contiguous():
        return _C.write_and_compare(row, source, turns.rest())
    row.copy_(source)
    return same_bits(row, source)


def copy_matrices(places: Sequence[torch.Tensor], matrices: Sequence[torch.Tensor]) -> None:
    """Copy matrices on the host, each to the contiguous place of the same index, shape and type. Mutates `places`.

    Other threads have the interpreter meanwhile, and steps their turns (`turns`).
    """
    _C.copy_matrices(list(places), list(matrices), turns.rest())
