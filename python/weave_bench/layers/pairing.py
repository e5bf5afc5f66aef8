"""Ways of doing one thing, timed in turn: ratios are taken within a round, most often a pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

Action = Callable[[], object]


class Way(NamedTuple):
    """One of them: what is set up before it, not timed, and what is timed."""

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
    """`time_round` of two ways; with `swap` the second goes first, to be changed from pair to pair."""
    one, other = time_round((first, second), begin=int(swap), between=between, clock=clock)
    return one, other


def time_round(
    ways: Sequence[Way], *, begin: int, between: Action, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Time all ways, one right after the other.

    Args:
        begin: which goes first, the others follow in turn; to be changed from round to round.
        between: done before each, not timed.
        clock: seconds.

    Returns:
        Milliseconds of each, in the order of `ways`.
    """
    taken = [0.0] * len(ways)
    for turn in range(len(ways)):
        number = (begin + turn) % len(ways)
        ways[number].prepare()
        between()
        begun = clock()
        ways[number].run()
        taken[number] = (clock() - begun) * 1e3
    return taken


def microseconds(action: Action, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call: the median of `calls` in a row, so that those in which others had the processor count little."""
    taken = []
    for _ in range(calls):
        begun = clock()
        action()
        taken.append(clock() - begun)
    return statistics.median(taken) * 1e6
