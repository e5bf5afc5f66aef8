"""Long work of loads in turns, between which the steps of the engine have the processor, and memory, to themselves.

vLLM's processes wait for each other by yielding in a loop. To Linux whoever yields is not waiting: a thread of the
lowest priority that gets the processor then keeps it for a whole slice, 3 to 4 ms of a step. So it has to yield as
often itself. And whatever a load reads and writes takes the memory's bandwidth and the caches from the step beside it,
on another processor as well; so while steps run, a load rests longer than it works.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

PIECE_BYTES = 256 << 10
"""Copied or hashed in about 0.1 ms."""
_LEAST_SECONDS = 5e-5
"""Of work, before a rest: shorter sleeps are mostly the system's own work."""
_MOST_SECONDS = 0.1
"""Of a rest: whoever gives up a load waits for its end."""

_worked = threading.local()


def _never() -> float:
    return 0.0


_rest: Callable[[], float] = _never


def rest_by(ratio: Callable[[], float] = _never) -> None:
    """Have the loads of this process rest so long, by how long they worked, as `ratio` says each time."""
    global _rest
    _rest = ratio


def rest() -> float:
    """How long to rest now, by how long one has worked; 0: there is nobody to rest for."""
    return _rest()


def give_way() -> None:
    """Let others run: a rest by the processor time this thread took since the last one, or a mere yield."""
    ratio = rest()
    if not ratio:
        os.sched_yield()
        _worked.until = None
        return
    now, until = time.thread_time(), getattr(_worked, "until", None)
    if until is None:
        _worked.until = now
    elif now - until >= _LEAST_SECONDS:
        time.sleep(min(ratio * (now - until), _MOST_SECONDS))
        _worked.until = time.thread_time()


def pieces(buffer: memoryview, size: int = PIECE_BYTES) -> Iterator[memoryview]:
    """`buffer`, of bytes, in order, at most `size` each. After each whoever wants the processor has it first."""
    for start in range(0, len(buffer), size):
        yield buffer[start : start + size]
        give_way()
