"""What the launch of any kernel here needs: arguments on one device, a current device, a number of programs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

MAX_PROGRAMS = 65535
"""Programs of a launch: the most that every device takes. Each goes through the blocks that are left to it."""


def programs_for(blocks: int, programs: int | None) -> tuple[int]:
    """The grid for `blocks` blocks of tokens: one program each, but `programs` at most (None: MAX_PROGRAMS)."""
    return (min(blocks, MAX_PROGRAMS if programs is None else programs),)


def check_device(operator: str, device: torch.device, **others: torch.Tensor | None) -> None:
    """Raises RuntimeError unless all of `others` are on `device`."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{operator}: {name} must be on {device} as the other arguments, got {tensor.device}")


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the one that triton launches on, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
