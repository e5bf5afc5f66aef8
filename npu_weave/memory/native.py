"""The compiled drivers as Python objects: statuses become errors, memory becomes tensors."""

from __future__ import annotations

import torch

from npu_weave import _C
from npu_weave.errors import DriverError
from npu_weave.memory.driver import DriverStats

# Status numbers of csrc/vmm/status.h: code and remedy.
_STATUS: dict[int, tuple[str, str]] = {
    1: ("DRIVER_INVALID_ARGUMENT", "a defect of the caller; please report it"),
    2: ("DRIVER_OUT_OF_MEMORY", "free memory, raise the limit, or check vm.max_map_count against the pages in use"),
    3: ("DRIVER_OUT_OF_ADDRESS_SPACE", "reserve fewer rows, or raise the limit on address space (ulimit -v)"),
    4: ("DRIVER_ALREADY_MAPPED", "unmap first"),
    5: ("DRIVER_NOT_MAPPED", "a defect of the caller; please report it"),
    6: ("DRIVER_IN_USE", "unmap first"),
    7: ("DRIVER_NOT_FENCED", "call fence() first, so that no kernel still uses the page"),
    8: ("DRIVER_FORKED", "open a driver in the process that uses it"),
    9: ("DRIVER_FAILED", "see the message of the system or the device"),
}


class NativeDriver:
    """`Driver` over a compiled one (csrc/vmm/driver.h); the base of the drivers of every device.

    Attributes:
        device: where its memory is.
    """

    def __init__(self, native: _C.Driver | None, device: torch.device, remedy: str) -> None:
        """Raises DriverError ``DRIVER_UNAVAILABLE`` when there is no `native`; the reason is the latest error."""
        if native is None:
            raise DriverError("DRIVER_UNAVAILABLE", f"{device} driver", got=_C.last_error(), remedy=remedy)
        self._native = native
        self._granularity = native.granularity()
        self.device = device

    @property
    def name(self) -> str:
        """``host``, ``cuda`` or ``npu``."""
        return self._native.name()

    @property
    def granularity(self) -> int:
        """Bytes of a page."""
        return self._granularity

    def reserve(self, nbytes: int) -> int:
        """See `Driver.reserve`."""
        self._natural("reserve", nbytes)
        status, address = self._native.reserve(nbytes)
        self._check(status, "reserve", nbytes)
        return address

    def release(self, address: int) -> None:
        """See `Driver.release`."""
        self._natural("release", address)
        self._check(self._native.release(address), "release", address)

    def create_page(self) -> int:
        """See `Driver.create_page`."""
        status, page = self._native.create_page()
        self._check(status, "create_page")
        return page

    def destroy_page(self, page: int) -> None:
        """See `Driver.destroy_page`."""
        self._natural("destroy_page", page)
        self._check(self._native.destroy_page(page), "destroy_page", page)

    def map(self, address: int, page: int) -> None:
        """See `Driver.map`."""
        self._natural("map", address, page)
        self._check(self._native.map(address, page), "map", address, page)

    def unmap(self, address: int) -> None:
        """See `Driver.unmap`."""
        self._natural("unmap", address)
        self._check(self._native.unmap(address), "unmap", address)

    def fence(self) -> None:
        """See `Driver.fence`."""
        self._check(self._native.fence(), "fence")

    def tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """See `Driver.tensor`."""
        self._natural("tensor", address, nbytes)
        self._check(self._native.check_range(address, nbytes), "tensor", address, nbytes)
        return self._tensor(address, nbytes, owner)

    def _tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """A uint8 tensor over a range that was checked."""
        return _C.memory_tensor(address, nbytes, owner, self.device)

    def stats(self) -> DriverStats:
        """See `Driver.stats`. All zeros in a forked child."""
        native = self._native.stats()
        return DriverStats(
            page_bytes=self._granularity,
            pages=native.pages,
            mapped_pages=native.mapped_pages,
            huge_pages=native.huge_pages,
            reservations=native.reservations,
            reserved_bytes=native.reserved_bytes,
        )

    def _natural(self, call: str, *arguments: int) -> None:
        for argument in arguments:
            if not 0 <= argument < 1 << 64:
                raise DriverError(
                    "DRIVER_INVALID_ARGUMENT",
                    f"{self.name} driver: {call}",
                    expected="a number of 64 bits",
                    got=str(argument),
                    remedy=_STATUS[1][1],
                )

    def _check(self, status: int, call: str, *arguments: int) -> None:
        if status != 0:
            code, remedy = _STATUS[status]
            shown = ", ".join(hex(argument) for argument in arguments)
            raise DriverError(code, f"{self.name} driver: {call}({shown})", got=_C.last_error(), remedy=remedy)


def limit_of(limit_bytes: int | None) -> int:
    """A driver's limit on physical memory as the compiled side takes it: 0 for none.

    Raises DriverError ``DRIVER_INVALID_ARGUMENT`` for one that is not positive.
    """
    if limit_bytes is not None and limit_bytes <= 0:
        raise DriverError(
            "DRIVER_INVALID_ARGUMENT", "driver's limit_bytes", expected="a positive number", got=str(limit_bytes)
        )
    return limit_bytes or 0
