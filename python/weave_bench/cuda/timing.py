"""Times of several ways to do the same, taken in turn: one launch after the other, or replayed as graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Action = Callable[[], object]
Timer = Callable[[], float]
"""Does it once and says how long the device took, in microseconds."""


def event_timer(action: Action, kept: object = None) -> Timer:
    """From the first launch to the end of the last, gaps between launches included.

    Args:
        kept: lives as long as the timer.
    """
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)

    def once(alive: object = kept) -> float:
        begin.record()
        action()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return once


def graph_timer(action: Action) -> Timer:
    """`event_timer` of a CUDA graph of `action`. Raises RuntimeError, by torch, if that reads anything on the host."""
    action()  # compiles, which a capture does not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = action()
    return event_timer(graph.replay, outputs)


TIMERS: Mapping[str, Callable[[Action], Timer]] = {"eager": event_timer, "graph": graph_timer}
"""By how steps are launched."""


def in_turn(timers: Mapping[str, Timer], turns: int, warm_up: int = 2) -> dict[str, list[float]]:
    """What every timer says in every turn. The order is reversed from turn to turn, so that none is always first.

    Args:
        warm_up: turns that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for turn in range(warm_up + turns):
        for name in names if turn % 2 == 0 else reversed(names):
            took = timers[name]()
            if turn >= warm_up:
                times[name].append(took)
    return times
