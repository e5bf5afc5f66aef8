"""The physical pages of one driver: handed out all or none, within a limit."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Any

from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.memory.driver import Driver
from npu_weave.turns import give_way

logger = logging.getLogger(__name__)


class PagePool:
    """Pages of one driver, which creates none but through its one pool. Thread-safe.

    Pages beyond those preallocated are created when acquired, or shortly before (`stock`), and destroyed when released,
    or shortly after, so that their memory is the system's again.

    Args:
        driver: where pages come from.
        limit_bytes: physical memory the pool may hold; None: no limit but the driver's. Whole pages count.
        later: has another thread do something, soon; released pages are destroyed there. None: by who releases them.
    """

    def __init__(
        self,
        driver: Driver,
        limit_bytes: int | None = None,
        *,
        later: Callable[[Callable[[], None]], Any] | None = None,
    ) -> None:
        self.driver = driver
        self._later = later
        self._limit = None if limit_bytes is None else limit_bytes // driver.granularity
        self._keep = 0
        self._stocked = 0
        self._making = 0
        self._lock = threading.RLock()
        self._idle: list[int] = []  # a heap: the lowest first, see `Arena::commit` in csrc/vmm
        self._used: set[int] = set()

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self.driver.granularity

    @property
    def limit_pages(self) -> int | None:
        """Pages the pool may hold, or None without a limit."""
        return self._limit

    @property
    def in_use(self) -> int:
        """Pages handed out."""
        return len(self._used)

    @property
    def idle(self) -> int:
        """Pages that exist and are not handed out."""
        return len(self._idle)

    def available(self) -> int:
        """Pages `acquire` may still hand out under the limit; ``sys.maxsize`` without one."""
        return sys.maxsize if self._limit is None else self._limit - self.in_use

    def preallocate(self, pages: int) -> None:
        """Creates idle pages until the pool holds at least this many, all or nothing, and keeps them from now on.

        Raises CapacityError ``MEMORY_EXHAUSTED``.
        """
        with self._lock:
            if self._limit is not None and pages > self._limit:
                raise self._exhausted(pages, f"a limit of {self._limit}")
            self._grow(pages - self.in_use, pages)
            self._keep = max(self._keep, pages)

    def stock(self, pages: int) -> None:
        """Has this many more idle pages made ready, so that `acquire` need not wait for the driver to make them.

        For a thread that may wait: the pool is free for others while a page is made. What cannot be made is left to
        `acquire`, which then says why. `unstock` ends it.
        """
        with self._lock:
            self._stocked += pages
        while self._make_one():
            give_way()

    def unstock(self, pages: int) -> None:
        """Ends a `stock` of this many pages; those that nobody took go back to the system."""
        with self._lock:
            self._stocked -= pages
            self._give_back()

    def acquire(self, pages: int) -> list[int]:
        """Hands out this many unmapped pages, in ascending order of handle, all or nothing.

        Their content is undefined.
        Raises CapacityError ``MEMORY_EXHAUSTED``; another DriverError of the driver passes through.
        """
        with self._lock:
            if pages > self.available():
                raise self._exhausted(pages, f"{self.available()} of {self._limit} are free")
            self._grow(pages, pages)
            taken = [heappop(self._idle) for _ in range(pages)]
            self._used.update(taken)
            return taken

    def release(self, pages: Iterable[int]) -> None:
        """Takes back unmapped pages and gives their memory to the system, but for what is preallocated.

        A page the driver fails to destroy stays idle, to be handed out again, and is logged: nothing is lost.
        Raises IntegrityError ``PAGE_NOT_IN_USE``, before anything changes, when one was not handed out.
        """
        with self._lock:
            back = list(pages)
            strangers = sorted(set(back) - self._used)
            if strangers or len(set(back)) != len(back):
                got = f"pages {strangers}" if strangers else "a page twice"
                raise IntegrityError("PAGE_NOT_IN_USE", "page pool", expected="pages of this pool in use", got=got)
            self._used.difference_update(back)
            self._idle += back
            self._give_back()

    def check_integrity(self) -> None:
        """Raises IntegrityError ``POOL_INCONSISTENT`` unless pages in use and idle are disjoint, within the limit, and
        as many as the driver says exist."""
        with self._lock:
            held = self.in_use + self.idle
            pages = self.driver.stats().pages
            made = held + self._making  # at most: how far these are only their thread knows
            faults = [
                ("disjoint pages in use and idle", bool(self._used.intersection(self._idle))),
                ("distinct idle pages", len(set(self._idle)) != self.idle),
                (f"{held} pages at the driver, got {pages}", not held <= pages <= made),
                (f"at most {self._limit} pages, got {held}", self._limit is not None and held > self._limit),
            ]
            wrong = [text for text, fault in faults if fault]
            if wrong:
                raise IntegrityError("POOL_INCONSISTENT", "page pool", expected="; ".join(wrong))

    def _grow(self, idle: int, asked: int) -> None:
        """Creates pages until this many are idle; as many as before when one cannot be created."""
        before = self.idle
        try:
            while self.idle < idle:
                heappush(self._idle, self.driver.create_page())
        except DriverError as error:
            self._destroy(self.idle - before)
            if error.code == "DRIVER_OUT_OF_MEMORY":
                raise self._exhausted(asked, error.got) from error
            raise

    def _make_one(self) -> bool:
        """Makes an idle page if one is missing to what is stocked. Returns whether it did.

        Nobody else waits while the driver makes it; so they may have taken the last page that the limit allows.
        """
        with self._lock:
            if self.idle + self._making >= min(self._stocked, self.available()):
                return False
            self._making += 1
        made: list[int] = []
        try:
            made.append(self.driver.create_page())
        except DriverError as error:
            logger.debug("no page is made ahead of its use: %s", error)
        finally:
            with self._lock:
                self._making -= 1
                self._idle += made
                self._destroy(max(0, self.idle - self.available()))
                self._give_back()
        return bool(made)

    def _give_back(self) -> None:
        if self._later is None:
            self._destroy(self._surplus())
            return
        heapify(self._idle)
        if self._surplus() > 0:
            self._later(self._destroy_surplus)

    def _surplus(self) -> int:
        """Idle pages that nobody asked to keep."""
        return max(0, self.idle - max(self._keep - self.in_use, self._stocked))

    def _destroy_surplus(self) -> None:
        """One by one: between two pages the pool is free for others. A page that the driver keeps ends it."""
        while self._destroy_one():
            give_way()

    def _destroy_one(self) -> bool:
        with self._lock:
            before = self.idle
            self._destroy(min(1, self._surplus()))
            return self.idle < before

    def _destroy(self, pages: int) -> None:
        """Destroys this many idle pages, the highest, so that those that stay lie together."""
        self._idle.sort()
        stay = len(self._idle) - pages
        leaving = self._idle[stay:]
        del self._idle[stay:]
        for page in leaving:
            try:
                self.driver.destroy_page(page)
            except DriverError as error:
                logger.warning("page %d stays idle: %s", page, error)
                self._idle.append(page)
        heapify(self._idle)

    def _exhausted(self, pages: int, got: str) -> CapacityError:
        return CapacityError(
            "MEMORY_EXHAUSTED",
            f"{pages} pages of {self.page_bytes >> 20} MiB",
            expected=f"{pages} free pages",
            got=got,
            remedy="unload adapters, or give npu-weave more memory",
        )
