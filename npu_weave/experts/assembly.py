"""A layer's expert parameters from its experts' matrices: the form in which engines load them, and most keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.memory.row_bytes import copy_matrices

Share = Callable[[torch.Tensor, int], torch.Tensor]
"""A rank's part of a matrix, cut along a dimension."""


def share_of(ranks: int, rank: int) -> Share:
    """The part of one of `ranks` equal ones."""

    def share(matrix: torch.Tensor, dimension: int) -> torch.Tensor:
        size = matrix.shape[dimension] // ranks
        return matrix.narrow(dimension, rank * size, size)

    return share


def assembled(experts: Sequence[ExpertTensors], share: Share) -> dict[str, torch.Tensor]:
    """``w13_weight [E, 2 I, H]``, gate before up, and ``w2_weight [E, H, I]``, in fresh memory on the host.

    All in one call that holds no interpreter: between two of a hundred short ones a step would wait for it each time.

    Args:
        experts: at least one, all of one type.
        share: along the intermediate dimension, I of a rank.
    """
    shares = [(share(each.gate, 0), share(each.up, 0), share(each.down, 1)) for each in experts]
    gate, _, down = shares[0]
    intermediate, hidden = gate.shape
    w13 = fresh_tensor((len(experts), 2 * intermediate, hidden), gate.dtype)
    w2 = fresh_tensor((len(experts), hidden, intermediate), down.dtype)
    places = [place for one, other in zip(w13, w2, strict=True) for place in (*one.split(intermediate), other)]
    copy_matrices(places, [matrix for three in shares for matrix in three])
    return {"w13_weight": w13, "w2_weight": w2}


def trial_expert(hidden: int, intermediate: int, dtype: torch.dtype) -> ExpertTensors:
    """An expert of random weights, the same each time: gate and up ``[I, H]``, down ``[H, I]``."""
    generator = torch.Generator().manual_seed(2508)
    shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    return ExpertTensors(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))
