"""Drivers around a driver: to limit it, to make it fail on purpose, to write down or add up what it was asked."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from npu_weave.errors import DriverError
from npu_weave.memory.driver import Driver, DriverStats

CALLS = ("reserve", "release", "create_page", "destroy_page", "map", "unmap", "fence", "tensor")


class _Forward:
    """Passes every call on; `_before` sees it first and may refuse it by raising, `_after` sees its result."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def _before(self, call: str, *arguments: int) -> None:
        """Called with the name of a call and its numbers."""

    def _after(self, call: str, result: int | None, *arguments: int) -> None:
        """Called when the call has succeeded."""

    @property
    def name(self) -> str:
        """The inner driver's."""
        return self._driver.name

    @property
    def granularity(self) -> int:
        """The inner driver's, in bytes."""
        return self._driver.granularity

    def reserve(self, nbytes: int) -> int:
        """See `Driver.reserve`."""
        self._before("reserve", nbytes)
        address = self._driver.reserve(nbytes)
        self._after("reserve", address, nbytes)
        return address

    def release(self, address: int) -> None:
        """See `Driver.release`."""
        self._before("release", address)
        self._driver.release(address)
        self._after("release", None, address)

    def create_page(self) -> int:
        """See `Driver.create_page`."""
        self._before("create_page")
        page = self._driver.create_page()
        self._after("create_page", page)
        return page

    def destroy_page(self, page: int) -> None:
        """See `Driver.destroy_page`."""
        self._before("destroy_page", page)
        self._driver.destroy_page(page)
        self._after("destroy_page", None, page)

    def map(self, address: int, page: int) -> None:
        """See `Driver.map`."""
        self._before("map", address, page)
        self._driver.map(address, page)
        self._after("map", None, address, page)

    def unmap(self, address: int) -> None:
        """See `Driver.unmap`."""
        self._before("unmap", address)
        self._driver.unmap(address)
        self._after("unmap", None, address)

    def fence(self) -> None:
        """See `Driver.fence`."""
        self._before("fence")
        self._driver.fence()
        self._after("fence", None)

    def tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """See `Driver.tensor`."""
        self._before("tensor", address, nbytes)
        tensor = self._driver.tensor(address, nbytes, owner)
        self._after("tensor", None, address, nbytes)
        return tensor

    def stats(self) -> DriverStats:
        """See `Driver.stats`."""
        return self._driver.stats()


class LimitDriver(_Forward):
    """Refuses to create more pages than fit in `limit_bytes`, as a smaller device would (``DRIVER_OUT_OF_MEMORY``).

    `limit_bytes` may be changed at any time.
    """

    def __init__(self, driver: Driver, limit_bytes: int) -> None:
        super().__init__(driver)
        self.limit_bytes = limit_bytes

    def _before(self, call: str, *arguments: int) -> None:
        if call == "create_page" and (self.stats().pages + 1) * self.granularity > self.limit_bytes:
            raise DriverError(
                "DRIVER_OUT_OF_MEMORY",
                "limit driver: create_page()",
                expected=f"at most {self.limit_bytes} bytes",
                got=f"{self.stats().pages} pages exist",
                remedy="raise the limit",
            )


class FaultDriver(_Forward):
    """Fails the n-th call of a kind (from 1) with ``DRIVER_FAULT_INJECTED``, before it reaches the driver.

    Args:
        driver: the driver to break.
        fail_at: call name, one of `CALLS`, and n; None: nothing fails until `arm` is called.
        times: how many calls of that kind fail in a row from then on; None: all.

    Attributes:
        counts: calls so far since construction or the last `arm`, by name.
    """

    def __init__(self, driver: Driver, fail_at: tuple[str, int] | None = None, times: int | None = 1) -> None:
        super().__init__(driver)
        self.counts: Counter[str] = Counter()
        self.arm(fail_at, times)

    def arm(self, fail_at: tuple[str, int] | None, times: int | None = 1) -> None:
        """Starts counting anew, towards another fault, or none."""
        if fail_at is not None and fail_at[0] not in CALLS:
            raise ValueError(f"no driver call is named {fail_at[0]!r}; there are {', '.join(CALLS)}")
        self._fail_at = fail_at
        self._times = times
        self.counts.clear()

    def _before(self, call: str, *arguments: int) -> None:
        self.counts[call] += 1
        if self._fail_at is None or call != self._fail_at[0]:
            return
        past = self.counts[call] - self._fail_at[1]
        if past >= 0 and (self._times is None or past < self._times):
            raise DriverError("DRIVER_FAULT_INJECTED", f"fault driver: {call}", got=f"call {self.counts[call]}")


@dataclass(frozen=True)
class Call:
    """One call that succeeded: its name, its numbers, and the number it returned, if any."""

    name: str
    arguments: tuple[int, ...]
    result: int | None


class TraceDriver(_Forward):
    """Keeps every successful call, oldest first, in `calls`; clear it as you like."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.calls: list[Call] = []

    def _after(self, call: str, result: int | None, *arguments: int) -> None:
        self.calls.append(Call(call, arguments, result))


@dataclass(frozen=True)
class CallStatistics:
    """Calls of one name: how many were made, how many of them failed, and the seconds spent in the others."""

    made: int
    failed: int
    seconds: float


class StatisticsDriver(_Forward):
    """Counts calls and adds up the time spent in them; see `calls`."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self._lock = threading.Lock()
        self._started = threading.local()
        self._made: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def calls(self) -> dict[str, CallStatistics]:
        """By name, of the calls that were made at least once. One that is under way counts as failed until it ends."""
        with self._lock:
            return {
                call: CallStatistics(made, made - self._done[call], self._seconds[call])
                for call, made in self._made.items()
            }

    def _before(self, call: str, *arguments: int) -> None:
        with self._lock:
            self._made[call] += 1
        self._started.at = time.perf_counter()

    def _after(self, call: str, result: int | None, *arguments: int) -> None:
        seconds = time.perf_counter() - self._started.at
        with self._lock:
            self._done[call] += 1
            self._seconds[call] += seconds
