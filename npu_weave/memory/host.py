"""The host's driver: CPU memory under the same strict rules as a device's, for serving on CPUs and for tests."""

from __future__ import annotations

import torch

from npu_weave import _C
from npu_weave.memory.native import NativeDriver, limit_of


class HostDriver(NativeDriver):
    """`Driver` over one memory file and PROT_NONE reservations; an access outside of what is mapped crashes.

    Pages are 2 MiB, committed and zeroed when created, and backed by one large page where the kernel has one. `map`
    fills the page tables, so that the first touch costs nothing and cannot fail. Mapped pages count as ``RssShmem`` of
    the process. After a fork, the child shares what was mapped, for reading; every call that changes something raises
    ``DRIVER_FORKED`` there.

    Args:
        limit_bytes: physical memory that may be created; None: as much as the machine has. Set it on machines where
            the kernel would rather kill a process than refuse it memory.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        super().__init__(
            _C.host_driver(limit_of(limit_bytes)), torch.device("cpu"), "allow this process a memory file (memfd)"
        )
