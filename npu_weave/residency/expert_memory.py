"""Where experts lie between the disk and their packing: in memory of this process, or of two."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterable
from queue import LifoQueue
from typing import Protocol

import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.turns import PIECE_BYTES, give_way


class ExpertMemory(Protocol):
    """Gives memory for experts. Thread-safe."""

    def take(self) -> ExpertTensors | None:
        """Memory of one expert of the base model's shapes and dtype; None: the caller's own, fresh."""

    def give_back(self, experts: Iterable[ExpertTensors]) -> None:
        """They are needed no longer."""


class SpareMemory:
    """What is needed no longer is used again; there is no limit."""

    def __init__(self) -> None:
        self._spare: deque[ExpertTensors] = deque()

    def take(self) -> ExpertTensors | None:
        """`ExpertMemory.take`."""
        try:
            return self._spare.popleft()
        except IndexError:
            return None

    def give_back(self, experts: Iterable[ExpertTensors]) -> None:
        """`ExpertMemory.give_back`."""
        self._spare.extend(experts)


class SharedMemory:
    """Memory of experts that two processes see, by a descriptor.

    Where nobody has written it takes no pages. References cannot say when they are needed no longer: an error's
    traceback keeps those of the load that it ended; `return_pages` does.

    Attributes:
        descriptor: of the memory; closed with this object.
        experts: as many as asked for, as tensors over it.
    """

    def __init__(self, geometry: MoEGeometry, count: int, descriptor: int | None = None) -> None:
        """
        Args:
            descriptor: of memory that the other process has made; None makes it.
        """
        across = (geometry.moe_intermediate_size, geometry.hidden_size)
        shapes = {"gate": across, "up": across, "down": across[::-1]}
        nbytes = {name: math.prod(shape) * geometry.dtype.itemsize for name, shape in shapes.items()}
        # whole pages, so that tensors are aligned as others are
        stride = -(-sum(nbytes.values()) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = os.memfd_create("npu-weave-experts") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, count * stride)
        self._memory = mmap.mmap(self.descriptor, count * stride)
        self.experts: list[ExpertTensors] = []
        for slot in range(count):
            parts, at = {}, slot * stride
            for name, shape in shapes.items():
                flat = torch.frombuffer(self._memory, dtype=geometry.dtype, count=math.prod(shape), offset=at)
                parts[name], at = flat.view(shape), at + nbytes[name]
            self.experts.append(ExpertTensors(**parts))
        weakref.finalize(self, os.close, self.descriptor)
        self._slot_of = {experts.gate.data_ptr(): slot for slot, experts in enumerate(self.experts)}

    def slot_of(self, experts: ExpertTensors) -> int:
        """Which of `experts` lies in the same memory."""
        return self._slot_of[experts.gate.data_ptr()]

    def is_at(self, descriptor: int) -> bool:
        """Whether `descriptor` is of this memory."""
        return os.path.sameopenfile(descriptor, self.descriptor)

    def return_pages(self) -> None:
        """Give all pages to the system, in both processes; what is left are zeros."""
        # Python keeps the interpreter meanwhile: for all at once others would wait 250 ms a GiB
        for start in range(0, len(self._memory), PIECE_BYTES):
            self._memory.madvise(mmap.MADV_REMOVE, start, PIECE_BYTES)
            give_way()


class SharedSlots:
    """`ExpertMemory` over a `SharedMemory`: whoever takes waits until something is given back."""

    def __init__(self, memory: SharedMemory, stopped: type[Exception]) -> None:
        """
        Args:
            stopped: raised by `take` after `stop`.
        """
        self._stopped = stopped
        self._free: LifoQueue[ExpertTensors | None] = LifoQueue()  # the last first: it has its pages already
        self.give_back(memory.experts)

    def take(self) -> ExpertTensors:
        """`ExpertMemory.take`."""
        experts = self._free.get()
        if experts is None:
            self.stop()  # there may be others who wait
            raise self._stopped
        return experts

    def give_back(self, experts: Iterable[ExpertTensors]) -> None:
        """`ExpertMemory.give_back`."""
        for each in experts:
            self._free.put(each)

    def stop(self) -> None:
        """Nothing is given any more."""
        self._free.put(None)
