"""Values for expert weights: random enough that no two experts are alike, made at the speed of a copy."""

from __future__ import annotations

import torch

_STRIDE = 64
"""Elements between where neighbouring experts begin in the noise: a cache line or more."""


def fill_experts(weight: torch.Tensor, seed: int) -> None:
    """Write expert weights ``[experts, ...]``: each expert is a window of one normal noise. Mutates `weight`."""
    experts, size = weight.shape[0], weight[0].numel()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(size + experts * _STRIDE, dtype=torch.float32)
    windows = noise.normal_(0.0, 0.02, generator=generator).to(weight.dtype)
    for expert in range(experts):
        weight[expert].view(-1).copy_(windows[expert * _STRIDE : expert * _STRIDE + size])
