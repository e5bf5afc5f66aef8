"""What the device can do at most: the fastest that it copies and multiplies, and the time that a step needs at that."""

from __future__ import annotations

from typing import NamedTuple

import torch

from weave_bench.cuda.geometry import LayerShape
from weave_bench.kernels import bandwidth, microseconds

SIZE = 8192
"""Of the square matrices whose product shows how fast the device multiplies."""


class Limits(NamedTuple):
    """Measured here: bytes and floating-point operations a microsecond."""

    bytes: float
    operations: float

    def describe(self) -> dict[str, str]:
        """For people."""
        return {
            "copy, read and written": f"{self.bytes / 1e6:.2f} TB/s",
            "bfloat16 product": f"{self.operations / 1e6:.0f} TFLOP/s",
        }


class Work(NamedTuple):
    """What one step asks for: distinct weight rows it reads, assignments to rows that are here, and tokens."""

    rows: float
    assignments: float
    tokens: int


def measure_limits(device: torch.device) -> Limits:
    """By a large copy and a large product of random matrices, the best of some."""
    left, right = (torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = min(microseconds(lambda: left @ right, device, 3) for _ in range(5))
    return Limits(bandwidth(device), 2 * SIZE**3 / best)


def floor(work: Work, shape: LayerShape, limits: Limits) -> float:
    """Microseconds that a step takes at least: its bytes once, or its operations, whichever takes longer.

    Bytes are those of the rows touched and of hidden states in and out; what lies between may stay on the chip.
    """
    moved = work.rows * shape.row_bytes + 2 * work.tokens * shape.hidden * 2
    operations = work.assignments * 6 * shape.hidden * shape.width
    return max(moved / limits.bytes, operations / limits.operations)
