"""Two ways of doing one thing, timed in turn: ratios are taken within a pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

Action = Callable[[], object]


class Way(NamedTuple):
    """One of the two: what is set up before it, not timed, and what is timed."""

    prepare: Action
    run: Action


class ColdCaches:
    """Empties the last-level cache of weights between timed runs, by reading as many bytes of its own.

    Args:
        nbytes: to read; None for the size of the cache that the system tells, at most 512 MiB.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        self.nbytes = min(last_level_cache(), 512 << 20) if nbytes is None else nbytes
        self._bytes = torch.ones(self.nbytes // 8, dtype=torch.int64)

    def __call__(self) -> None:
        """Read them all."""
        self._bytes.sum()


def last_level_cache() -> int:
    """Bytes of this processor's largest cache; 64 MiB where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=64 << 20)


def time_pair(
    first: Way, second: Way, *, swap: bool, between: Action, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Time both ways, one right after the other.

    Args:
        swap: the second goes first; to be changed from pair to pair.
        between: done before each, not timed.
        clock: seconds.

    Returns:
        Milliseconds of the first and of the second, whichever was timed first.
    """

    def timed(way: Way) -> float:
        way.prepare()
        between()
        begun = clock()
        way.run()
        return (clock() - begun) * 1e3

    if swap:
        later = timed(second)
        return timed(first), later
    return timed(first), timed(second)


def microseconds(action: Action, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call: the median of `calls` in a row, so that those in which others had the processor count little."""
    taken = []
    for _ in range(calls):
        begun = clock()
        action()
        taken.append(clock() - begun)
    return statistics.median(taken) * 1e6
