# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Tokens by row: which assignments each weight row serves, in blocks that a grouped matmul takes one by one.

An assignment is a pair of token and rank: number ``t * top_k + k`` stands for ``rows[t, k]``. Two launches, a program
for each row of the weight tensor; sizes of everything depend on shapes alone, and the host reads nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

CHUNK = 1024
"""Assignments that a program looks through at a time."""


class Blocks(NamedTuple):
    """Assignments by row, int32 all.

    Attributes:
        order: ``[assignments]``, those of the same row beside each other, ascending; the rest of it is undefined.
        row: ``[blocks]``, the row a block is for, -1 for a block that is not needed.
        first: ``[blocks]``, where in `order` a block begins.
        end: ``[blocks]``, and ends. At most `size` assignments.
        size: of a full block.
    """

    order: torch.Tensor
    row: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    size: int


@triton.jit(do_not_specialize=["assignments"])
def _count_kernel(rows, counts, assignments, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    total = 0
    for start in range(0, assignments, CHUNK):
        at = start + tl.arange(0, CHUNK)
        here = tl.load(rows + at, mask=at < assignments, other=-1) == row
        total += tl.sum(here.to(tl.int32), axis=0)
    tl.store(counts + row, total)


@triton.jit(do_not_specialize=["assignments", "blocks"])
def _place_kernel(
    rows, counts, order, block_row, block_first, block_end, assignments, blocks, n_rows,
    SIZE: tl.constexpr, EVERY: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    every = tl.arange(0, EVERY)
    count = tl.load(counts + every, mask=every < n_rows, other=0)
    needed = (count + SIZE - 1) // SIZE
    own = tl.sum(tl.where(every == row, count, 0), axis=0)
    done = tl.sum(tl.where(every < row, count, 0), axis=0)
    first_block = tl.sum(tl.where(every < row, needed, 0), axis=0)
    own_blocks = (own + SIZE - 1) // SIZE
    for start in range(0, own_blocks, CHUNK):
        number = start + tl.arange(0, CHUNK)
        there, begins = first_block + number, number * SIZE
        wanted = number < own_blocks
        tl.store(block_row + there, row, mask=wanted)
        tl.store(block_first + there, done + begins, mask=wanted)
        tl.store(block_end + there, done + tl.minimum(begins + SIZE, own), mask=wanted)
    if row == 0:  # somebody has to mark the blocks that nobody needs
        for start in range(tl.sum(needed, axis=0), blocks, CHUNK):
            number = start + tl.arange(0, CHUNK)
            tl.store(block_row + number, -1, mask=number < blocks)
    if own > 0:
        for start in range(0, assignments, CHUNK):
            at = start + tl.arange(0, CHUNK)
            here = (tl.load(rows + at, mask=at < assignments, other=-1) == row).to(tl.int32)
            tl.store(order + done + tl.cumsum(here, axis=0) - 1, at, mask=here != 0)
            done += tl.sum(here, axis=0)


def most_blocks(assignments: int, rows: int, size: int) -> int:
    """Blocks that suffice however `assignments` fall on `rows`: all but one of a block's places may be empty."""
    return (assignments + min(rows, assignments) * (size - 1)) // size


def sort_by_row(rows: torch.Tensor, count: int, size: int) -> Blocks:
    """Sorts the assignments of `rows`, contiguous int32 ``[tokens, top_k]``, into blocks of at most `size`.

    Those to rows outside of ``0 ... count - 1`` are in no block: they are another rank's.
    """
    assignments = rows.numel()
    blocks = most_blocks(assignments, count, size)
    counts, order = rows.new_empty(count), rows.new_empty(assignments)
    row, first, end = (rows.new_empty(blocks) for _ in range(3))
    if assignments:
        _count_kernel[(count,)](rows, counts, assignments, CHUNK=CHUNK)
        _place_kernel[(count,)](
            rows, counts, order, row, first, end, assignments, blocks, count,
            SIZE=size, EVERY=triton.next_power_of_2(count), CHUNK=CHUNK,
        )  # fmt: skip
    return Blocks(order, row, first, end, size)
