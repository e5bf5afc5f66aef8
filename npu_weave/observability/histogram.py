"""Durations counted in buckets, as Prometheus wants them."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of buckets in seconds; one more without a bound comes last."""


class Histogram:
    """How often what took how long since the start."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def report(self) -> dict[str, Any]:
        """Plain values: ``counts`` by bucket, not added up, and the ``sum`` of seconds."""
        return {"counts": list(self._counts), "sum": self._sum}


def cumulative(counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus' buckets: each bound as text with how many were at most that long."""
    total, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
