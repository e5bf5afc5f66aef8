"""What the operating system says this process holds."""

from __future__ import annotations

from pathlib import Path


def process_shmem_bytes() -> int:
    """Shared memory mapped by this process and present, in bytes (``RssShmem``): where host pages are counted.

    Counts what other libraries share too, so compare differences.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) * 1024
    return 0
