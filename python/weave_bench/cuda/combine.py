# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""A token's output: the weighted sum over its experts, in Triton, always in the same order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Elements of a program's part of a token."""


@triton.jit
def _combine_kernel(expert_out, weights, rows, out, n_rows, H: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        at = token * TOP_K + k
        row = tl.load(rows + at)
        width = tl.where((row >= 0) & (row < n_rows), H, 0)
        value = tl.load(expert_out + at * H + column, mask=column < width, other=0.0).to(tl.float32)
        total += tl.load(weights + at) * value
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), mask=column < H)


def combine(expert_out: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """``out[t] = sum over k of weights[t, k] * expert_out[t * top_k + k]``, over rows ``0 ... count - 1`` only.

    Args:
        expert_out: ``[tokens * top_k, hidden]``.
        weights, rows: float32 and int32 ``[tokens, top_k]``.

    Returns:
        ``[tokens, hidden]`` of expert_out's dtype, summed in float32.
    """
    tokens, top_k = rows.shape
    hidden = expert_out.shape[1]
    out = expert_out.new_empty((tokens, hidden))
    if tokens:
        grid = (tokens, triton.cdiv(hidden, BLOCK))
        _combine_kernel[grid](expert_out, weights, rows, out, count, H=hidden, TOP_K=top_k, BLOCK=BLOCK)
    return out
