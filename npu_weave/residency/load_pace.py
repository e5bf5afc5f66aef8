"""How fast loads may go: as fast as they can while no step runs, else at a pace that leaves steps theirs."""

from __future__ import annotations

import mmap
import os
import time
import weakref

STEPS_RUN_SECONDS = 1.0
"""After the beginning of a step others are expected for so long."""


class LoadPace:
    """When the last step began, in memory that this process shares with those that get its descriptor.

    Attributes:
        ratio: how long a load rests while steps run, by how long it worked.
        descriptor: of the memory; closed with this object.
    """

    def __init__(self, ratio: float, descriptor: int | None = None) -> None:
        """
        Args:
            descriptor: of another process's; this object's from now on. None makes it.
        """
        self.ratio = ratio
        self.descriptor = os.memfd_create("npu-weave-pace") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, mmap.PAGESIZE)
        weakref.finalize(self, os.close, self.descriptor)
        self._step_began = memoryview(mmap.mmap(self.descriptor, mmap.PAGESIZE)).cast("d")

    def note_step(self) -> None:
        """A step begins."""
        self._step_began[0] = time.monotonic()  # the same clock in all processes

    def rest(self) -> float:
        """What `turns.rest_by` takes: `ratio` while steps run, else 0."""
        return self.ratio if time.monotonic() - self._step_began[0] < STEPS_RUN_SECONDS else 0.0
