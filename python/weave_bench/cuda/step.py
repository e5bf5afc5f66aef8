"""What a step of a layer is given, and the experts that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Step:
    """What a layer is given in one step, on the device.

    Attributes:
        hidden: ``[tokens, hidden]``.
        logits: the router's, ``[tokens, experts]``, same dtype.
        token_slots: int32 ``[tokens]``.
    """

    hidden: torch.Tensor
    logits: torch.Tensor
    token_slots: torch.Tensor


class ExpertWeights(NamedTuple):
    """A layer's experts as kernels see them.

    Attributes:
        w13: ``[rows, 2 width, hidden]``, gate over up.
        w2: ``[rows, hidden, width]``.
        expert_map: int32 ``[slots + 1, experts]``, which row stands for an expert. Rows that the tensors do not have
            are other ranks'.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    expert_map: torch.Tensor
