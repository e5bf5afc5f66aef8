"""Muon for matrices, AdamW for the rest, behind one step.

Muon orthogonalises the momentum of each weight matrix (a few Newton-Schulz iterations), so that all directions of a
matrix learn at the same pace; small models get by with a fraction of the steps AdamW needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that drives singular values towards one (K. Jordan's Muon)."""


def orthogonalize(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Replaces the singular values of each matrix in float `[n, rows, columns]` by roughly one."""
    a, b, c = _NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    # bfloat16 is exact enough here: the iteration corrects itself, and only rough orthogonality is asked for
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    orthogonal: torch.Tensor = (x.mT if tall else x).to(stack.dtype)
    return orthogonal


class MatrixOptimizer:
    """Updates the trainable parameters of a model in place; embeddings, head, router and norms go to AdamW.

    Args:
        named: the model's named parameters; those without ``requires_grad`` are left out.
        matrix_rate: Muon's peak learning rate.
        other_rate: AdamW's peak learning rate.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], matrix_rate: float, other_rate: float) -> None:
        self._rate = matrix_rate
        self._stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        self._momenta: dict[torch.Size, torch.Tensor] = {}
        others: list[nn.Parameter] = []
        for name, parameter in named:
            if parameter.requires_grad:
                hidden_matrix = "_proj." in name
                (self._stacks[parameter.shape] if hidden_matrix else others).append(parameter)
        self._adamw = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0) if others else None
        self._other_rate = other_rate

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update with learning rates times `scale`; clears the gradients.

        A parameter without a gradient (an expert no token chose) counts as one with a gradient of zero.
        """
        for shape, parameters in self._stacks.items():
            gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            momentum = self._momenta.setdefault(shape, torch.zeros_like(gradient))
            momentum.lerp_(gradient, 0.05)
            update = orthogonalize(gradient.lerp(momentum, 0.95))
            rate = self._rate * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(parameters, update.unbind(), strict=True):
                parameter.add_(change, alpha=-rate)
                parameter.grad = None
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = self._other_rate * scale
            self._adamw.step()
            self._adamw.zero_grad()
