"""How vLLM's processes wait for each other's messages while adapters are loaded: asleep.

Otherwise they yield in a loop, and fall asleep after a second without a message. To Linux whoever yields is not
waiting: on a machine with few processors a thread of the lowest priority that gets one of them so keeps it for
milliseconds, in which no step begins or ends. Whoever is woken has it at once.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

LOST_CALL_MS = 2
"""Whoever writes a message calls those who sleep, and a call may be lost; so they look again after this time."""
AFTERWARDS_SECONDS = 0.5
"""A load that is over still gives memory back."""


class Loads(Protocol):
    """Loads of one process."""

    @property
    def busy(self) -> bool:
        """Whether any are under way."""


_watched: weakref.WeakSet[Loads] = weakref.WeakSet()
_awake_after = 0.0


def sleep_during(loads: Loads) -> None:
    """Have this process sleep where it waits for messages during `loads`, and shortly afterwards."""
    _watched.add(loads)


def wrap_wait(original: Callable[..., None]) -> Callable[..., None]:
    """``SpinCondition.wait`` of vLLM, for which ``busy_loop_s`` after the last message it is time to sleep."""

    @functools.wraps(original)
    def wait(self: Any, timeout_ms: int | None = None) -> None:
        if not (_watched and _asleep()):
            original(self, timeout_ms)
            return
        usual, self.busy_loop_s = self.busy_loop_s, -1.0
        try:
            original(self, LOST_CALL_MS if timeout_ms is None else min(timeout_ms, LOST_CALL_MS))
        finally:
            self.busy_loop_s = usual

    return wait


def _asleep() -> bool:
    global _awake_after
    now = time.monotonic()
    if any(loads.busy for loads in _watched):
        _awake_after = now + AFTERWARDS_SECONDS
        return True
    return now < _awake_after
