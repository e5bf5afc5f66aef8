"""An adapter on its way into a slot: not all of its rows are leased and copied yet, and none is published."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from npu_weave.errors import IntegrityError
from npu_weave.memory.row_bytes import write_bits
from npu_weave.memory.virtual_tensor import VirtualTensor

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


class LeasedRow(NamedTuple):
    """A mapped row of one expert parameter, still to be written.

    Attributes:
        tensor, row: where.
        source: what it is to hold: row `position` of this, on the host.
    """

    tensor: VirtualTensor
    row: int
    source: torch.Tensor
    position: int

    def copies(self) -> list[RowCopy]:
        """The row in pieces, so that nobody who wants to stop has to wait long."""
        row, source = self.tensor.row_view(self.row), self.source[self.position]
        name = f"{self.tensor.name} row {self.row}"
        if not source.is_contiguous():
            return [RowCopy(row, source, name)]
        elements = PIECE_BYTES // source.itemsize
        pieces = zip(torch.split(row.reshape(-1), elements), torch.split(source.reshape(-1), elements), strict=True)
        return [RowCopy(piece, meant, name) for piece, meant in pieces]


class PreparedInstall:
    """Made by `ExpertBank.prepare`; ends with `publish` or `abort`.

    The step thread calls all but `copy_next`, which may run on another: it touches nothing but rows that no map
    reaches. Until the end the bank prepares and installs nothing else, as its rows could be shared before they are
    written.

    Args:
        leases: what is to be leased, a few layers each; the same on all ranks.
    """

    def __init__(
        self,
        leases: Iterable[Callable[[], list[LeasedRow]]],
        *,
        verify: bool,
        publish: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        self._leases = deque(leases)
        self._rows: deque[LeasedRow] = deque()
        self._copies: deque[RowCopy] = deque()  # of the first row, those not yet run
        self._verify = verify
        self._publish = publish
        self._abort = abort
        self._lock = threading.Lock()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it was published or aborted."""
        return self._ended

    def lease_next(self) -> bool:
        """Lease and map the rows of some more layers. Returns whether any are left; copying can wait until none is.

        Raises:
            CapacityError, DriverError: it is aborted then.
        """
        with self._lock:
            try:
                if self._leases:
                    self._rows += self._leases.popleft()()
            except BaseException:
                self._give_up()
                raise
            return bool(self._leases)

    def copy_next(self) -> bool:
        """Write a piece of a row, and read it back where the bank verifies. Returns whether there is more to do.

        Raises:
            IntegrityError: ROW_CONTENT; to be aborted then.
        """
        with self._lock:
            if self._ended or not self._rows:
                return False
            if not self._copies:
                self._copies.extend(self._rows[0].copies())
            self._copies[0].run(verify=self._verify)
            self._copies.popleft()
            if not self._copies:
                self._rows.popleft()
            return bool(self._rows)

    def publish(self) -> None:
        """Make the adapter visible to the next step, behind a fence.

        Raises:
            DriverError: the fence failed; nothing is changed then.
            IntegrityError: COPY_UNFINISHED.
        """
        with self._lock:
            if self._ended or self._leases or self._rows:
                raise IntegrityError(
                    "COPY_UNFINISHED", "install", expected="every row written", got=f"{len(self._rows)} to write"
                )
            self._publish()
            self._ended = True

    def abort(self) -> None:
        """Give the rows back. Waits for the row being written, if any; does nothing when it has ended."""
        with self._lock:
            if not self._ended:
                self._give_up()

    def _give_up(self) -> None:
        self._ended = True
        self._leases.clear()
        self._rows.clear()
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
