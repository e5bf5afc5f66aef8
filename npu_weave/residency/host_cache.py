"""Packed adapters that no revision uses just now, kept on the host in case they are asked for again."""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial

from npu_weave.errors import IntegrityError
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.residency.load_threads import Later
from npu_weave.turns import give_way

_CALLER_RETURNS_SECONDS = 0.01
"""Until then the thread that lets an adapter go refers to it itself, and would be the last to do so."""


class HostCache:
    """Packed adapters by content digest, least recently used first, up to a limit in bytes.

    What is kept depends only on the sequence of calls and on sizes, so the ranks of a tensor-parallel group, whose
    slices are equally large, keep the same. Not thread-safe.

    Attributes:
        limit_bytes: most bytes kept; None for no limit but `trim`.
        nbytes: bytes kept.
    """

    def __init__(self, limit_bytes: int | None = 0, *, later: Later | None = None) -> None:
        """
        Args:
            later: returns memory to the system, which takes 80 ms a GiB; None: the calling thread does.
        """
        self._later = later
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._kept: OrderedDict[str, PackedAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    def put(self, adapter: PackedAdapter) -> None:
        """Keep `adapter`, as the most recently used; others go until the limit holds. One beyond it is not kept."""
        self.take(adapter.digest)
        if self.limit_bytes is not None and adapter.nbytes > self.limit_bytes:
            self.free(adapter)
            return
        self._kept[adapter.digest] = adapter
        self.nbytes += adapter.nbytes
        while self.limit_bytes is not None and self.nbytes > self.limit_bytes:
            self._drop_oldest()

    def take(self, digest: str) -> PackedAdapter | None:
        """The adapter of this content, which leaves the cache; None when it is not there."""
        adapter = self._kept.pop(digest, None)
        if adapter is not None:
            self.nbytes -= adapter.nbytes
        return adapter

    def trim(self, most: int) -> None:
        """Keep at most this many adapters."""
        while len(self._kept) > max(most, 0):
            self._drop_oldest()

    def free(self, adapter: PackedAdapter) -> None:
        """Have the memory of `adapter`, which is not kept, returned once nobody else uses it."""
        if self._later is not None:
            self._later(partial(_let_go, list(adapter.layers.values())))

    def check_integrity(self) -> None:
        """Check the count of bytes, and the limit.

        Raises:
            IntegrityError: HOST_CACHE_STATE.
        """
        held = sum(adapter.nbytes for adapter in self._kept.values())
        if held != self.nbytes or (self.limit_bytes is not None and held > self.limit_bytes):
            raise IntegrityError(
                "HOST_CACHE_STATE", "host cache", expected=f"{held} of {self.limit_bytes}", got=str(self.nbytes)
            )

    def _drop_oldest(self) -> None:
        _, adapter = self._kept.popitem(last=False)
        self.nbytes -= adapter.nbytes
        self.free(adapter)


def _let_go(layers: list[PackedLayer]) -> None:
    time.sleep(_CALLER_RETURNS_SECONDS)
    while layers:
        layers.pop()
        give_way()
