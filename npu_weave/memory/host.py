"""The host's driver: CPU memory under the same strict rules as a device's, for serving on CPUs and for tests."""

from __future__ import annotations

import torch

from npu_weave import _C
from npu_weave.errors import DriverError
from npu_weave.memory.driver import DriverStats

# Status numbers of csrc/vmm/driver.h: code and remedy.
_STATUS: dict[int, tuple[str, str]] = {
    1: ("DRIVER_INVALID_ARGUMENT", "a defect of the caller; please report it"),
    2: ("DRIVER_OUT_OF_MEMORY", "free memory, raise the limit, or check vm.max_map_count against the pages in use"),
    3: ("DRIVER_OUT_OF_ADDRESS_SPACE", "reserve fewer rows, or raise the limit on address space (ulimit -v)"),
    4: ("DRIVER_ALREADY_MAPPED", "unmap first"),
    5: ("DRIVER_NOT_MAPPED", "a defect of the caller; please report it"),
    6: ("DRIVER_IN_USE", "unmap first"),
    7: ("DRIVER_NOT_FENCED", "call fence() first, so that no kernel still uses the page"),
    8: ("DRIVER_FORKED", "open a driver in the process that uses it"),
    9: ("DRIVER_FAILED", "see the system's message"),
}


class HostDriver:
    """`Driver` over one memory file and PROT_NONE reservations; an access outside of what is mapped crashes.

    Pages are 2 MiB, committed and zeroed when created, and backed by one large page where the kernel has one.
    Mapped pages count as ``RssShmem`` of the process. After a fork, the child shares what was mapped, for reading;
    every call that changes something raises ``DRIVER_FORKED`` there.

    Args:
        limit_bytes: physical memory that may be created; None: as much as the machine has. Set it on machines where
            the kernel would rather kill a process than refuse it memory.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes <= 0:
            raise DriverError(
                "DRIVER_INVALID_ARGUMENT", "HostDriver limit_bytes", expected="a positive number", got=str(limit_bytes)
            )
        native = _C.host_driver(limit_bytes or 0)
        if native is None:
            raise DriverError("DRIVER_FAILED", "host driver: open", got=_C.last_error())
        self._native = native
        self._granularity = native.granularity()

    @property
    def name(self) -> str:
        """``host``."""
        return self._native.name()

    @property
    def granularity(self) -> int:
        """2 MiB, in bytes."""
        return self._granularity

    def reserve(self, nbytes: int) -> int:
        """See `Driver.reserve`."""
        _natural("reserve", nbytes)
        status, address = self._native.reserve(nbytes)
        _check(status, "reserve", nbytes)
        return address

    def release(self, address: int) -> None:
        """See `Driver.release`."""
        _natural("release", address)
        _check(self._native.release(address), "release", address)

    def create_page(self) -> int:
        """See `Driver.create_page`. The page is zeroed."""
        status, page = self._native.create_page()
        _check(status, "create_page")
        return page

    def destroy_page(self, page: int) -> None:
        """See `Driver.destroy_page`."""
        _natural("destroy_page", page)
        _check(self._native.destroy_page(page), "destroy_page", page)

    def map(self, address: int, page: int) -> None:
        """See `Driver.map`. Page tables are filled, so the first touch costs nothing and cannot fail."""
        _natural("map", address, page)
        _check(self._native.map(address, page), "map", address, page)

    def unmap(self, address: int) -> None:
        """See `Driver.unmap`."""
        _natural("unmap", address)
        _check(self._native.unmap(address), "unmap", address)

    def fence(self) -> None:
        """See `Driver.fence`. CPU kernels have finished when they return, so this only marks the point."""
        _check(self._native.fence(), "fence")

    def tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """See `Driver.tensor`."""
        _natural("tensor", address, nbytes)
        status, tensor = self._native.tensor(address, nbytes, owner)
        _check(status, "tensor", address, nbytes)
        return tensor

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


def _natural(call: str, *arguments: int) -> None:
    for argument in arguments:
        if not 0 <= argument < 1 << 64:
            raise DriverError(
                "DRIVER_INVALID_ARGUMENT",
                f"host driver: {call}",
                expected="a number of 64 bits",
                got=str(argument),
                remedy=_STATUS[1][1],
            )


def _check(status: int, call: str, *arguments: int) -> None:
    if status != 0:
        code, remedy = _STATUS[status]
        shown = ", ".join(hex(argument) for argument in arguments)
        raise DriverError(code, f"host driver: {call}({shown})", got=_C.last_error(), remedy=remedy)
