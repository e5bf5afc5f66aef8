"""What a virtual-memory driver does, whatever the device: the protocol, and the numbers it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class DriverStats:
    """What a driver holds now.

    Attributes:
        page_bytes: bytes of a page, the driver's granularity.
        pages: pages created and not destroyed: physical memory in use.
        mapped_pages: of these, pages mapped at an address.
        huge_pages: of the created pages, those the system is known to back with one large page.
        reservations: ranges of address space held.
        reserved_bytes: their size; costs no memory.
    """

    page_bytes: int
    pages: int = 0
    mapped_pages: int = 0
    huge_pages: int = 0
    reservations: int = 0
    reserved_bytes: int = 0

    @property
    def created_bytes(self) -> int:
        """Physical memory in use, in bytes."""
        return self.pages * self.page_bytes

    @property
    def mapped_bytes(self) -> int:
        """Physical memory mapped, in bytes."""
        return self.mapped_pages * self.page_bytes


class Driver(Protocol):
    """Address space and physical pages of one device.

    The contract is what ACL, CUDA and the host have in common: a page is mapped whole and at one address at a time; a
    mapping ends exactly as it was made, and only after a `fence` that came after it was made; a page is destroyed only
    when unmapped, a reservation released only when empty. Every call is safe from any thread. A call that fails changes
    nothing and raises `DriverError`, whose code says which rule or resource it was (``DRIVER_INVALID_ARGUMENT``,
    ``DRIVER_OUT_OF_MEMORY``, ``DRIVER_OUT_OF_ADDRESS_SPACE``, ``DRIVER_ALREADY_MAPPED``, ``DRIVER_NOT_MAPPED``,
    ``DRIVER_IN_USE``, ``DRIVER_NOT_FENCED``, ``DRIVER_FORKED``, ``DRIVER_FAILED``).
    """

    @property
    def name(self) -> str:
        """The kind of device, e.g. ``host``."""
        ...

    @property
    def granularity(self) -> int:
        """Bytes of a page; addresses are multiples of it."""
        ...

    def reserve(self, nbytes: int) -> int:
        """Takes nbytes (a multiple of the granularity) of address space, all holes, and returns its base."""
        ...

    def release(self, address: int) -> None:
        """Gives back the reservation that starts at address; nothing may be mapped in it."""
        ...

    def create_page(self) -> int:
        """Commits one page of physical memory and returns its handle (never 0). Memory that is short shows here.

        Its content is undefined, but for the host's, which is zero.
        """
        ...

    def destroy_page(self, page: int) -> None:
        """Gives the memory of an unmapped page back to the system."""
        ...

    def map(self, address: int, page: int) -> None:
        """Maps an unmapped page, readable and writable, at a hole of a reservation."""
        ...

    def unmap(self, address: int) -> None:
        """Makes address a hole again; the page keeps its content and may be mapped elsewhere."""
        ...

    def fence(self) -> None:
        """Waits until the device has finished all work it was given."""
        ...

    def tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        """A uint8 tensor ``[nbytes]`` over a range of one reservation; touches nothing, keeps owner alive."""
        ...

    def stats(self) -> DriverStats:
        """What the driver holds now."""
        ...
