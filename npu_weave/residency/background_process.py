"""A process beside an engine's, for work that would hold the interpreter lock which the steps need.

A thread that yields the processor makes it worse: while it waits for one, holding the lock, so does the step.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Pipe
from typing import Any, TypeVar

from npu_weave.errors import WeaveError
from npu_weave.residency.channel import Channel, ChannelClosed
from npu_weave.residency.load_threads import stand_back

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # it needs no device
_ENDS_SECONDS = 5.0


class BackgroundProcess:
    """Runs functions, one at a time, in one process that yields the processor to everyone.

    It is started by the first call, or ahead of it by `start`; again when it was lost; and ends with this object, or
    with the process that this is in. Thread-safe. Functions and what they take and give must pickle; they come from
    us, never from a request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if it does not run. Returns at once."""
        with self._lock:
            self._started()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function(*args)`` returns there. It must change nothing, for it may be run twice (`twice_if_lost`).

        Raises:
            WeaveError: LOAD_PROCESS_LOST.
            Exception: whatever it raises (`Channel.receive`).
        """
        return twice_if_lost(lambda: self._call(function, args))

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with self.talk(_answer, function, args) as channel:
            return channel.receive()

    @contextmanager
    def talk(self, function: Callable[..., None], *args: Any) -> Iterator[Channel]:
        """Run ``function(channel, *args)`` there, with the other end of this channel.

        At the end both sides must have taken all that was sent to them.

        Raises:
            WeaveError: LOAD_PROCESS_LOST.
        """
        with self._lock:
            process, channel = self._started()
            try:
                channel.send((function, args))
                yield channel
            except ChannelClosed as closed:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDS_SECONDS)
                self._end()
                raise _lost(process.returncode) from closed

    def _started(self) -> tuple[subprocess.Popen[bytes], Channel]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            ours, theirs = Pipe()
            with theirs:
                self._process = subprocess.Popen(
                    # -P: nothing is imported from the directory that the engine happens to be in
                    [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, **_ENVIRONMENT},
                    stdin=subprocess.DEVNULL,
                    stdout=sys.__stderr__,
                    process_group=0,  # an interrupt from the keyboard is for the engine
                )
            self._channel = Channel(ours)
            self._finalizer = weakref.finalize(self, _end, self._process, self._channel, os.getpid())
        return self._process, self._channel

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def twice_if_lost(ask: Callable[[], _Result]) -> _Result:
    """What `ask` returns; if the process that it asks ends meanwhile, what it returns when it asks the next.

    So who wants an adapter does not notice that a process was killed for want of memory. No third time: it may be this
    adapter that ends them.

    Raises:
        WeaveError: LOAD_PROCESS_LOST, twice.
    """
    try:
        return ask()
    except WeaveError as error:
        if error.code != "LOAD_PROCESS_LOST":
            raise
        lost = WeaveError.from_dict(error.to_dict())  # without its traceback, which keeps what was read
        logger.warning("%s; asking another one", lost)
    return ask()


@cache
def process_for_calls() -> BackgroundProcess:
    """One for all short calls of this process; it is started here, ahead of the first."""
    made = BackgroundProcess()
    made.start()
    return made


def _serve(channel: Channel) -> None:
    """Run what comes, until nobody is at the other end."""
    with suppress(ChannelClosed):
        while True:
            function, args = channel.receive()
            function(channel, *args)


def _answer(channel: Channel, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        value = function(*args)
    except Exception as error:
        channel.send_error(error)
    else:
        channel.send(value)


def _end(process: subprocess.Popen[bytes], channel: Channel, owner: int) -> None:
    channel.close()
    if os.getpid() != owner:
        return  # a fork of the engine ends, not the engine
    process.kill()  # it only reads, and nothing waits for it
    process.wait()


def _lost(status: int | None) -> WeaveError:
    return WeaveError(
        "LOAD_PROCESS_LOST",
        "the process that reads adapters",
        expected="that it runs as long as the engine",
        got=f"it ended with status {status}",
        remedy="see whether the system ran out of memory; loading the adapter again starts another process",
    )


if __name__ == "__main__":
    stand_back()
    _serve(Channel.of_descriptor(int(sys.argv[1])))
