"""Products of matrices that accumulate."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator


@operator("_npu_matmul_add_fp32(Tensor x, Tensor weight, Tensor(a!) C) -> ()")
def _npu_matmul_add_fp32(x: torch.Tensor, weight: torch.Tensor, C: torch.Tensor) -> None:
    """Adds ``x^T @ weight`` to C in place: ``[rows, M]``, ``[rows, N]`` and float32 ``[M, N]``."""
    right = x.dim() == 2 and weight.dim() == 2 and len(x) == len(weight)
    check(right, "weight", f"[{len(x)}, N], not {tuple(weight.shape)}")
    right = C.dtype == torch.float32 and tuple(C.shape) == (x.shape[1], weight.shape[1])
    check(right, "C", f"float32 [{x.shape[1]}, {weight.shape[1]}], not {C.dtype} {tuple(C.shape)}")
    C += x.float().t() @ weight.float()
