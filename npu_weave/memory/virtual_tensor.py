"""A tensor whose rows all have addresses and only some have memory."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from npu_weave.errors import ConfigError, DriverError, IntegrityError
from npu_weave.memory.driver import Driver
from npu_weave.memory.pool import PagePool

logger = logging.getLogger(__name__)


class _Reservation:
    """Address space that is given back when the last tensor over it is gone, so that a stale view faults, loudly."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver = driver
        self.address = driver.reserve(nbytes)

    def __del__(self) -> None:
        if not hasattr(self, "address") or sys.is_finalizing():
            return
        try:
            self._driver.release(self.address)
        except DriverError as error:
            # Never closed, so pages are still mapped, or a forked child: the end of the process frees it.
            logger.warning("address space is kept: %s", error)


@dataclass
class _MappedPage:
    page: int
    rows: int  # mapped rows with bytes in it


class VirtualTensor:
    """``[rows, *row_shape]`` in address space, with physical pages under mapped rows only.

    A row need not be a whole number of pages: neighbours share the page at their boundary, which goes when the last
    row with bytes in it does. Reading or writing a row that is not mapped faults, except where a neighbour's page
    reaches into it. A row's content is undefined until it is written. Thread-safe, except that the caller sees to it
    that no kernel uses a row while it is unmapped beyond what `Driver.fence` waits for.

    Args:
        pool: where pages come from, and whose driver maps them.
        rows: rows in address space, >= 1.
        row_shape: shape of one row, e.g. ``(out_features, in_features)``.
        dtype: element type.
        name: for messages.

    Raises ConfigError ``TENSOR_SHAPE`` for an empty shape, DriverError when the address space cannot be had.

    Attributes:
        tensor: the whole tensor, contiguous; its address never changes.
        row_bytes: bytes of one row.
    """

    def __init__(self, pool: PagePool, *, rows: int, row_shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
        if rows < 1 or min(row_shape, default=1) < 1:
            raise ConfigError("TENSOR_SHAPE", name, expected="positive sizes", got=f"{rows} rows of {row_shape}")
        self.name = name
        self.rows = rows
        self.row_bytes = prod(row_shape) * dtype.itemsize
        self._pool = pool
        self._driver = pool.driver
        self._page_bytes = pool.page_bytes
        self._lock = threading.RLock()
        self._rows: set[int] = set()
        self._pages: dict[int, _MappedPage] = {}  # by position in the reservation
        nbytes = rows * self.row_bytes
        reservation = _Reservation(self._driver, -(-nbytes // self._page_bytes) * self._page_bytes)
        self._address = reservation.address
        data = self._driver.tensor(self._address, nbytes, reservation)
        self.tensor = data.view(dtype).view(rows, *row_shape)

    @property
    def mapped_rows(self) -> frozenset[int]:
        """Rows that may be used."""
        return frozenset(self._rows)

    @property
    def mapped_bytes(self) -> int:
        """Physical memory under the tensor, in bytes: whole pages."""
        return len(self._pages) * self._page_bytes

    @property
    def exact_bytes(self) -> int:
        """Bytes of the mapped rows alone."""
        return len(self._rows) * self.row_bytes

    def pages_needed(self, rows: Iterable[int]) -> int:
        """Pages that mapping these rows, none of them mapped yet, would take from the pool."""
        with self._lock:
            return len(self._pages_of(self._checked(rows, mapped=False)).keys() - self._pages.keys())

    def map_rows(self, rows: Iterable[int]) -> None:
        """Puts memory under rows, all or none; on failure everything is as before.

        Raises IntegrityError ``ROW_ALREADY_MAPPED``, ``ROW_OUT_OF_RANGE`` or ``ROW_REPEATED``, CapacityError
        ``MEMORY_EXHAUSTED``, or the driver's DriverError.
        """
        with self._lock:
            asked = self._checked(rows, mapped=False)
            uses = self._pages_of(asked)
            fresh = sorted(uses.keys() - self._pages.keys())
            pages = self._pool.acquire(len(fresh))
            done = 0
            try:
                for position, page in zip(fresh, pages, strict=True):
                    self._driver.map(self._address_of(position), page)
                    done += 1
            except BaseException:
                self._undo_map(fresh, pages, done)
                raise
            for position, page in zip(fresh, pages, strict=True):
                self._pages[position] = _MappedPage(page, 0)
            for position, count in uses.items():
                self._pages[position].rows += count
            self._rows.update(asked)

    def unmap_rows(self, rows: Iterable[int]) -> None:
        """Takes rows out, after a fence, and gives the pages no row needs back to the pool, all or none.

        Raises IntegrityError ``ROW_NOT_MAPPED``, ``ROW_OUT_OF_RANGE`` or ``ROW_REPEATED``, or the driver's DriverError.
        Then everything is as before, content included, but for IntegrityError ``PAGE_LOST``: the driver refused both to
        unmap one page and to map another again.
        """
        with self._lock:
            asked = self._checked(rows, mapped=True)
            uses = self._pages_of(asked)
            leaving = sorted(position for position, count in uses.items() if self._pages[position].rows == count)
            self._unmap_pages(leaving)
            freed = [self._pages.pop(position).page for position in leaving]
            for position, count in uses.items():
                if position in self._pages:
                    self._pages[position].rows -= count
            self._rows.difference_update(asked)
            self._pool.release(freed)

    def row_view(self, row: int) -> torch.Tensor:
        """The row as a tensor ``row_shape`` over the same memory. Raises IntegrityError ``ROW_NOT_MAPPED``."""
        with self._lock:
            self._checked([row], mapped=True)
            return self.tensor[row]

    def check_integrity(self) -> None:
        """Raises IntegrityError ``TENSOR_INCONSISTENT`` unless the pages, and the rows counted in each, are those under
        the mapped rows, and the tensor is where it was made."""
        with self._lock:
            counted = {position: mapped.rows for position, mapped in self._pages.items() if mapped.rows > 0}
            needed = dict(self._pages_of(self._rows))
            pages = [mapped.page for mapped in self._pages.values()]
            if counted != needed or len(set(pages)) != len(pages) or self.tensor.data_ptr() != self._address:
                raise IntegrityError(
                    "TENSOR_INCONSISTENT",
                    self.name,
                    expected=f"{len(needed)} pages under {len(self._rows)} rows at {self._address:#x}",
                    got=f"{len(set(pages))} pages at {self.tensor.data_ptr():#x}",
                )

    def close(self) -> None:
        """Unmaps every row. Views that are still about fault from now on; the address space goes with the last one."""
        with self._lock:
            self.unmap_rows(self.mapped_rows)
            stranded = sorted(self._pages)
            self._unmap_pages(stranded)
            self._pool.release([self._pages.pop(position).page for position in stranded])

    def _checked(self, rows: Iterable[int], *, mapped: bool) -> set[int]:
        listed = list(rows)
        asked = set(listed)
        for code, wrong, expected in (
            ("ROW_REPEATED", [row for row, count in Counter(listed).items() if count > 1], "each row once"),
            ("ROW_OUT_OF_RANGE", [row for row in asked if not 0 <= row < self.rows], f"rows 0 to {self.rows - 1}"),
            ("ROW_NOT_MAPPED", asked - self._rows if mapped else (), "mapped rows"),
            ("ROW_ALREADY_MAPPED", () if mapped else asked & self._rows, "rows that are not mapped"),
        ):
            if wrong:
                raise IntegrityError(code, self.name, expected=expected, got=f"rows {sorted(wrong)}")
        return asked

    def _pages_of(self, rows: Iterable[int]) -> Counter[int]:
        """For each page position under these rows, how many of them have bytes in it."""
        uses: Counter[int] = Counter()
        for row in rows:
            first = row * self.row_bytes // self._page_bytes
            last = ((row + 1) * self.row_bytes - 1) // self._page_bytes
            uses.update(range(first, last + 1))
        return uses

    def _address_of(self, position: int) -> int:
        return self._address + position * self._page_bytes

    def _undo_map(self, fresh: list[int], pages: list[int], done: int) -> None:
        """Undoes a `map_rows` of which `done` pages were mapped.

        A page that cannot be unmapped any more stays in the books, under no row: the next `map_rows` there uses it.
        """
        returned = pages[done:]
        for position, page in zip(fresh[:done], pages[:done], strict=True):
            try:
                self._driver.fence()
                self._driver.unmap(self._address_of(position))
                returned.append(page)
            except DriverError as error:
                logger.error("%s: page %d stays mapped: %s", self.name, position, error)
                self._pages[position] = _MappedPage(page, 0)
        self._pool.release(returned)

    def _unmap_pages(self, positions: list[int]) -> None:
        """Unmaps all or none of these pages; they stay in the books."""
        if not positions:
            return
        self._driver.fence()
        done: list[int] = []
        try:
            for position in positions:
                self._driver.unmap(self._address_of(position))
                done.append(position)
        except DriverError:
            lost = [position for position in done if not self._mapped_again(position)]
            if lost:
                raise IntegrityError(
                    "PAGE_LOST", self.name, expected="pages mapped again after a failed unmap", got=f"holes at {lost}"
                ) from None
            raise

    def _mapped_again(self, position: int) -> bool:
        try:
            self._driver.map(self._address_of(position), self._pages[position].page)
        except DriverError as error:
            logger.error("%s: page %d cannot be mapped again: %s", self.name, position, error)
            return False
        return True
