"""What a step of the layer should give: a loop over tokens in float64, on the host."""

from __future__ import annotations

import torch

from weave_bench.cuda.step import ExpertWeights


def experts_reference(
    hidden: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, held: ExpertWeights
) -> torch.Tensor:
    """As `layer.experts`, float64 ``[tokens, hidden]`` on the host. Reads the rows in use and no others."""
    out = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, x in enumerate(hidden.double().cpu()):
        for weight, row in zip(weights[token].tolist(), rows[token].tolist(), strict=True):
            if 0 <= row < len(held.w13):
                gate, up = held.w13[row].double().cpu().chunk(2)
                activated = torch.nn.functional.silu(gate @ x) * (up @ x)
                out[token] += weight * (held.w2[row].double().cpu() @ activated)
    return out


def relative_error(found: torch.Tensor, meant: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is meant; NaN if anything found is."""
    return float((found.double().cpu() - meant).norm() / meant.norm())
