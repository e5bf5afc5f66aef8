"""What the host of a virtual machine takes from it, and which measurements that spoils."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil

_Measured = TypeVar("_Measured")


class Host:
    """The share of the processor time of this machine that its host gives to others although it is wanted here.

    Counted from when this is made; 0 where the system does not tell.
    """

    def __init__(self) -> None:
        self._begun, self._before = time.monotonic(), _stolen_seconds()

    def stolen(self) -> float:
        """Share of the time of all the machine's cores, 0 to 1."""
        cores: int = psutil.cpu_count()
        return (_stolen_seconds() - self._before) / (time.monotonic() - self._begun) / cores


def least_disturbed(found: Sequence[_Measured], count: int, stolen: Callable[[_Measured], float]) -> list[_Measured]:
    """The `count` of which the host took least, in their order; chosen without a look at what was measured."""
    kept = heapq.nsmallest(count, range(len(found)), key=lambda index: stolen(found[index]))
    return [found[index] for index in sorted(kept)]


def _stolen_seconds() -> float:
    return float(getattr(psutil.cpu_times(), "steal", 0.0))
