"""Activations."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator


@operator("npu_swiglu(Tensor input, int dim=-1) -> Tensor")
def npu_swiglu(input: torch.Tensor, dim: int) -> torch.Tensor:
    """``silu(first half) * second half`` of dimension `dim`."""
    check(-input.dim() <= dim < input.dim(), "dim", f"{dim} is not a dimension of {tuple(input.shape)}")
    check(input.shape[dim] % 2 == 0, "input", f"dimension {dim} of {tuple(input.shape)} cannot be halved")
    gate, up = input.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(input.dtype)
