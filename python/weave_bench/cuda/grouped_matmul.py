# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Matrix products of tokens with the weight row that each is assigned to, in Triton.

A program takes a block of assignments to one row (`sorting.Blocks`) and a tile of that row's outputs. Rows without
assignments have no block, so nothing of them is read, and nothing beyond a row's own elements: under either there may
be no memory. With ``GATED``, a row holds gate and up, one below the other, and what is stored is ``silu(gate) * up``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from weave_bench.cuda.sorting import Blocks


class Tile(NamedTuple):
    """How a launch is cut: assignments, outputs and inputs of a tile, warps and pipeline stages of a program."""

    assignments: int
    outputs: int
    inputs: int
    warps: int
    stages: int


FEW, SOME, MANY = Tile(16, 64, 128, 4, 4), Tile(64, 64, 64, 4, 4), Tile(128, 128, 64, 8, 3)
TOGETHER = tl.constexpr(8)
"""Blocks whose tiles run beside each other, so that blocks of one row share what the second-level cache holds of it."""


def tile_for(assignments: int, experts: int) -> Tile:
    """By assignments an expert of the base model: adapters, which spread the same tokens further, change nothing."""
    each = assignments / experts
    return FEW if each <= 16 else SOME if each <= 64 else MANY


@triton.jit(do_not_specialize=["blocks"])
def _grouped_matmul_kernel(
    x, weights, out, order, block_row, block_first, block_end, blocks, stride_row,
    N: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    start = program // (TOGETHER * tiles) * TOGETHER
    members = tl.minimum(blocks - start, TOGETHER)
    block = start + program % (TOGETHER * tiles) % members
    tile = program % (TOGETHER * tiles) // members
    row = tl.load(block_row + block)
    if row >= 0:
        at = tl.load(block_first + block) + tl.arange(0, BLOCK_M)
        here = (at < tl.load(block_end + block))[:, None]
        assignment = tl.load(order + at[:, None], mask=here, other=0).to(tl.int64)
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        k = tl.arange(0, BLOCK_K)
        x_at = x + assignment // SHARED * K + k[None, :]
        w_at = weights + row.to(tl.int64) * stride_row + column * K + k[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, K, BLOCK_K):
            x_mask, w_mask = here, column < N
            if K % BLOCK_K != 0:
                x_mask &= k[None, :] < K - first
                w_mask &= k[:, None] < K - first
            taken = tl.load(x_at + first, mask=x_mask, other=0.0)
            total = tl.dot(taken, tl.load(w_at + first, mask=w_mask, other=0.0), total, input_precision="ieee")
            if GATED:
                below = tl.load(w_at + (N * K + first), mask=w_mask, other=0.0)
                up = tl.dot(taken, below, up, input_precision="ieee")
        if GATED:
            total = total / (1.0 + tl.exp(-total)) * up
        tl.store(out + assignment * N + column, total.to(out.dtype.element_ty), mask=here & (column < N))


def grouped_matmul(x: torch.Tensor, weights: torch.Tensor, blocks: Blocks, tile: Tile, *, gated: bool) -> torch.Tensor:
    """Every assignment's product with its row.

    Args:
        x: contiguous ``[tokens or assignments, K]``. With fewer lines than assignments, as many of these in a row
            share a line.
        weights: ``[rows, N, K]``, or ``[rows, 2 N, K]`` with `gated`; rows contiguous. Only rows with blocks are read.
        blocks: of `tile`'s assignments.

    Returns:
        ``[assignments, N]`` of x's dtype. Lines of assignments that are in no block are undefined.
    """
    outputs = weights.shape[1] // 2 if gated else weights.shape[1]
    assignments = len(blocks.order)
    out = x.new_empty((assignments, outputs))
    if assignments:
        grid = (len(blocks.row) * triton.cdiv(outputs, tile.outputs),)
        _grouped_matmul_kernel[grid](
            x, weights, out, blocks.order, blocks.row, blocks.first, blocks.end, len(blocks.row), weights.stride(0),
            N=outputs, K=x.shape[1], SHARED=assignments // len(x), GATED=gated,
            BLOCK_M=tile.assignments, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out
