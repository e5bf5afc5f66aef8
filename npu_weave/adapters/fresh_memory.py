"""Memory on the host to read and pack into."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

_HUGE_PAGE = 2 << 20


def fresh_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose memory nothing has touched yet, so it costs none.

    In huge pages where the system grants them: the first touch of as many small ones takes longer than the copy.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return torch.empty(torch.Size(shape), dtype=dtype)
    memory = mmap.mmap(-1, -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(torch.Size(shape))
