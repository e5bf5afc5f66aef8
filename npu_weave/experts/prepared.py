"""An adapter on its way into a slot: its rows are leased, but not all of them copied, and none published."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from npu_weave.errors import IntegrityError
from npu_weave.memory.row_bytes import write_bits

PIECE_BYTES = 2 << 20


@dataclass(frozen=True)
class RowCopy:
    """A piece of one row of one expert parameter, still to be written.

    Attributes:
        row: view of the mapped row, or of a piece of it.
        source: what it is to hold, on the host.
        name: of parameter and row, for messages.
    """

    row: torch.Tensor
    source: torch.Tensor
    name: str

    def run(self, *, verify: bool) -> None:
        """Write the row; with `verify` read it back.

        Raises:
            IntegrityError: ROW_CONTENT.
        """
        if not verify:
            self.row.copy_(self.source)
        elif not write_bits(self.row, self.source):
            raise row_content(self.name)


def row_copies(row: torch.Tensor, source: torch.Tensor, name: str) -> Iterator[RowCopy]:
    """A row in pieces, so that nobody who wants to stop has to wait long."""
    if not source.is_contiguous():
        yield RowCopy(row, source, name)
        return
    elements = PIECE_BYTES // source.itemsize
    pieces = zip(torch.split(row.reshape(-1), elements), torch.split(source.reshape(-1), elements), strict=True)
    for piece, meant in pieces:
        yield RowCopy(piece, meant, name)


class PreparedInstall:
    """Made by `ExpertBank.prepare`; ends with `publish` or `abort`, which the step thread calls.

    `copy_next` may run on another thread: it touches nothing but rows that no map reaches. Until the end the bank
    prepares and installs nothing else, as its rows could be shared before they are written.
    """

    def __init__(
        self, copies: Iterable[RowCopy], *, verify: bool, publish: Callable[[], None], abort: Callable[[], None]
    ) -> None:
        self._copies = deque(copies)
        self._verify = verify
        self._publish = publish
        self._abort = abort
        self._lock = threading.Lock()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it was published or aborted."""
        return self._ended

    def copy_next(self) -> bool:
        """Write a piece of a row, and read it back where the bank verifies. Returns whether there is more to do.

        Raises:
            IntegrityError: ROW_CONTENT; to be aborted then.
        """
        with self._lock:
            if self._ended or not self._copies:
                return False
            self._copies[0].run(verify=self._verify)
            self._copies.popleft()
            return bool(self._copies)

    def publish(self) -> None:
        """Make the adapter visible to the next step, behind a fence.

        Raises:
            DriverError: the fence failed; nothing is changed then.
            IntegrityError: COPY_UNFINISHED.
        """
        with self._lock:
            if self._ended or self._copies:
                raise IntegrityError(
                    "COPY_UNFINISHED", "install", expected="every row written", got=f"{len(self._copies)} to write"
                )
            self._publish()
            self._ended = True

    def abort(self) -> None:
        """Give the rows back. Waits for the row being written, if any; does nothing when it has ended."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._copies.clear()
                self._abort()


def row_content(name: str, expert: int | None = None) -> IntegrityError:
    """The error of a row that does not hold what was written."""
    return IntegrityError(
        "ROW_CONTENT",
        name,
        expected="the bytes that were written" if expert is None else f"the bytes of expert {expert}",
        got="other bytes",
        remedy="report this with the log; an adapter that is being loaded was not published",
    )
