"""A driver without a device: the rules of `npu_weave.memory.Driver` in books alone, over ordinary memory."""

from __future__ import annotations

import ctypes
from itertools import count

import torch

from npu_weave.errors import DriverError
from npu_weave.memory import DriverStats


class SimulatedDriver:
    """`Driver` whose pages are numbers and whose reservations are ordinary memory, all of it there from the start.

    It refuses what every driver refuses, always as DRIVER_INVALID_ARGUMENT, and counts as they do, at the cost of a
    dictionary; content stays where it was written, not with its page. Not thread-safe.
    """

    name = "simulated"
    granularity = 4096

    def __init__(self) -> None:
        self._serial = count(1)
        self._reservations: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._address_of: dict[int, int | None] = {}  # page -> where it is mapped
        self._mapped: dict[int, tuple[int, int]] = {}  # address -> page, and the fences before it was mapped
        self._fences = 0

    def reserve(self, nbytes: int) -> int:
        """See `Driver.reserve`."""
        self._demand(nbytes > 0 and nbytes % self.granularity == 0, "reserve", nbytes)
        memory = (ctypes.c_char * (nbytes + self.granularity))()
        address = -(-ctypes.addressof(memory) // self.granularity) * self.granularity
        self._reservations[address] = memory
        return address

    def release(self, address: int) -> None:
        """See `Driver.release`."""
        self._demand(address in self._reservations, "release", address)
        end = address + self._size(address)
        inside = any(address <= mapped < end for mapped in self._mapped)
        self._demand(not inside, "release", address)
        del self._reservations[address]

    def create_page(self) -> int:
        """See `Driver.create_page`."""
        page = next(self._serial)
        self._address_of[page] = None
        return page

    def destroy_page(self, page: int) -> None:
        """See `Driver.destroy_page`."""
        self._demand(page in self._address_of, "destroy_page", page)
        self._demand(self._address_of[page] is None, "destroy_page", page)
        del self._address_of[page]

    def map(self, address: int, page: int) -> None:
        """See `Driver.map`."""
        self._demand(page in self._address_of, "map", page)
        inside = any(base <= address < base + self._size(base) for base in self._reservations)
        self._demand(inside and address % self.granularity == 0, "map", address)
        self._demand(address not in self._mapped, "map", address)
        self._demand(self._address_of[page] is None, "map", page)
        self._address_of[page] = address
        self._mapped[address] = (page, self._fences)

    def unmap(self, address: int) -> None:
        """See `Driver.unmap`."""
        self._demand(address in self._mapped, "unmap", address)
        page, fences = self._mapped[address]
        self._demand(fences < self._fences, "unmap", address)
        del self._mapped[address]
        self._address_of[page] = None

    def fence(self) -> None:
        """See `Driver.fence`."""
        self._fences += 1

    def tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """See `Driver.tensor`."""
        base = max((base for base in self._reservations if base <= address), default=None)
        if base is None or address + nbytes > base + self._size(base):
            raise DriverError("DRIVER_INVALID_ARGUMENT", f"simulated driver: tensor({address:#x}, {nbytes:#x})")
        window = (ctypes.c_char * nbytes).from_address(address)
        window.owner = owner  # type: ignore[attr-defined]  # lives as long as the storage that holds the window
        return torch.frombuffer(window, dtype=torch.uint8)

    def stats(self) -> DriverStats:
        """See `Driver.stats`."""
        return DriverStats(
            page_bytes=self.granularity,
            pages=len(self._address_of),
            mapped_pages=len(self._mapped),
            reservations=len(self._reservations),
            reserved_bytes=sum(map(self._size, self._reservations)),
        )

    def _size(self, base: int) -> int:
        return len(self._reservations[base]) - self.granularity

    def _demand(self, holds: bool, call: str, argument: int) -> None:
        if not holds:
            raise DriverError("DRIVER_INVALID_ARGUMENT", f"simulated driver: {call}({argument:#x})")
