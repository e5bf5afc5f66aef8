"""Streams and events, whose work is done before the call that asked for it returns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class Event:
    """A point in a stream. It is reached as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        if interprocess:
            raise RuntimeError("torch.npu.Event(interprocess=True) is not emulated")
        self._recorded_at: float | None = None

    def record(self, stream: Any = None) -> None:
        self._recorded_at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """The work before the event is done."""

    def synchronize(self) -> None:
        """As `wait`, for the host."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds. Raises RuntimeError unless both were recorded."""
        if self._recorded_at is None or end._recorded_at is None:
            raise RuntimeError("torch.npu.Event.elapsed_time: both events must be recorded first")
        return (end._recorded_at - self._recorded_at) * 1000


class Stream:
    """A queue of work, always empty."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device("privateuseone", 0) if device is None else torch.device(device)
        self.npu_stream = id(self)

    def wait_stream(self, other: Any) -> None:
        """The work of `other` is done."""

    def wait_event(self, event: Any) -> None:
        """The event is reached."""

    def synchronize(self) -> None:
        """The work is done."""

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _NeedsGraphs:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"torch.npu.{type(self).__name__} is not emulated: there is no graph capture")


class ExternalEvent(_NeedsGraphs):
    """Of graph capture only."""


class NPUGraph(_NeedsGraphs):
    """Of graph capture only."""


_default = Stream()
_current = _default


def default_stream(device: Any = None) -> Stream:
    return _default


def current_stream(device: Any = None) -> Stream:
    return _current


def set_stream(stream: Stream) -> None:
    global _current
    _current = stream


@contextlib.contextmanager
def stream_context(stream: Stream | None) -> Iterator[None]:
    """Makes `stream` the current one; None changes nothing."""
    before = _current
    if stream is not None:
        set_stream(stream)
    try:
        yield
    finally:
        set_stream(before)
