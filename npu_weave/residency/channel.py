"""What two processes of ours say to each other: values, and errors in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from npu_weave.errors import WeaveError


class ChannelClosed(Exception):
    """The process at the other end has gone."""


class Channel:
    """One end. One thread may send while another receives. All methods but `close` raise `ChannelClosed`."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Channel:
        """The end that was handed to this process as an open descriptor."""
        return cls(Connection(descriptor))

    def send(self, value: Any) -> None:
        """Send a value that pickles."""
        with _closing():
            self._connection.send((True, value))

    def send_error(self, error: Exception) -> None:
        """Have the other side's `receive` raise `error`, or a RuntimeError with its text if it is none of ours."""
        ours = error if isinstance(error, WeaveError) else RuntimeError(f"{type(error).__name__}: {error}")
        with _closing():
            self._connection.send((False, ours))

    def receive(self, between: Callable[[], None] | None = None) -> Any:
        """The next value.

        Args:
            between: called again and again while there is none; may raise.

        Raises:
            Exception: one that was sent in its place.
        """
        with _closing():
            while between is not None and not self._connection.poll(_POLL_SECONDS):
                between()
            worked, value = self._connection.recv()
        if not worked:
            raise value
        return value

    def send_descriptor(self, descriptor: int, pid: int) -> None:
        """Give the other process, `pid`, a descriptor of its own for the same file."""
        with _closing():
            send_handle(self._connection, descriptor, pid)

    def receive_descriptor(self) -> int:
        """One that was sent."""
        with _closing():
            return recv_handle(self._connection)

    def close(self) -> None:
        """Let the other side know that this one has gone."""
        self._connection.close()


_POLL_SECONDS = 0.05


@contextmanager
def _closing() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as gone:
        raise ChannelClosed from gone
