"""Root-mean-square norms."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm over the dimensions of `gamma`, which are the last of `x`: ``(y, 1 / rms)``, the latter float32."""
    check(
        0 < gamma.dim() <= x.dim() and x.shape[x.dim() - gamma.dim() :] == gamma.shape,
        "gamma",
        f"shape {tuple(gamma.shape)} does not end that of the input, {tuple(x.shape)}",
    )
    check(gamma.dtype == x.dtype, "gamma", f"{gamma.dtype}, where the input is {x.dtype}")
    check(epsilon > 0, "epsilon", f"must be positive, not {epsilon}")
    values = x.float()
    over = tuple(range(-gamma.dim(), 0))
    scale = torch.rsqrt(values.pow(2).mean(over, keepdim=True) + epsilon)
    return (values * scale * gamma.float()).to(x.dtype), scale


@operator("npu_rms_norm(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)")
def npu_rms_norm(input: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return rms_norm(input, gamma, epsilon)


@operator("npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)")
def npu_add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(norm of the sum, 1 / rms, the sum)``."""
    check(x1.shape == x2.shape, "x2", f"shape {tuple(x2.shape)}, where x1 has {tuple(x1.shape)}")
    check(x1.dtype == x2.dtype, "x2", f"{x2.dtype}, where x1 is {x1.dtype}")
    total = (x1.float() + x2.float()).to(x1.dtype)
    normed, scale = rms_norm(total, gamma, epsilon)
    return normed, scale, total
