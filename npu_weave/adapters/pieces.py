"""Long work on bytes in pieces, between which others get the processor.

vLLM's processes wait for each other by yielding in a loop. To Linux whoever yields is not waiting: a thread of the
lowest priority that gets the processor then keeps it for a whole slice, 3 to 4 ms of a step. So it has to yield as
often itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

PIECE_BYTES = 256 << 10
"""Copied or hashed in about 0.1 ms."""


def pieces(buffer: memoryview, size: int = PIECE_BYTES) -> Iterator[memoryview]:
    """`buffer`, of bytes, in order, at most `size` each. After each whoever wants the processor has it first."""
    for start in range(0, len(buffer), size):
        yield buffer[start : start + size]
        os.sched_yield()
