"""The experts of an adapter in order, read and hashed ahead of whoever asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from npu_weave.adapters.adapter import Adapter, ExpertTensors, open_adapter
from npu_weave.adapters.digest import AdapterHasher
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.expert_memory import ExpertMemory, SpareMemory
from npu_weave.residency.load_threads import background_threads

AHEAD = 6
"""Experts asked of the disk before they are needed."""

_READERS = 2  # so that the disk has something to do while one of them copies


class AdapterReads(Protocol):
    """An adapter that is being read, once.

    Attributes:
        experts: layer -> ids, both ascending.
        digest: of the whole adapter, when all has been read.
    """

    experts: dict[int, tuple[int, ...]]

    @property
    def digest(self) -> str: ...

    def __iter__(self) -> Iterator[tuple[ExpertTensors, str]]:
        """Every expert, in the order of `experts`, with its digest.

        Raises:
            AdapterError: see `Adapter.expert`; besides whatever `check` raises.
        """

    def give_back(self, experts: Sequence[ExpertTensors]) -> None:
        """Have the memory of `experts`, which are needed no longer, used for later ones."""


class AdapterSource(Protocol):
    """Where a worker has its adapters read."""

    def open(self, path: str, check: Callable[[], None]) -> AbstractContextManager[AdapterReads]:
        """Validate the adapter at `path` and begin to read it.

        Args:
            check: called often; raises to end the reading.

        Raises:
            AdapterError: the codes of `open_adapter`.
        """


class LocalSource:
    """`AdapterSource` that reads on threads of this process."""

    def __init__(self, geometry: MoEGeometry, allowed_roots: Sequence[Path] | None = None) -> None:
        self._geometry = geometry
        self._allowed_roots = allowed_roots

    @contextmanager
    def open(self, path: str, check: Callable[[], None]) -> Iterator[AdapterReads]:
        """`AdapterSource.open`."""
        adapter = open_adapter(path, self._geometry, allowed_roots=self._allowed_roots)
        with ExpertReads(adapter, check, SpareMemory()) as reads:
            yield reads


class ExpertReads:
    """A context in which an adapter is read, once (`AdapterReads`). While one expert is packed, others are hashed and
    read."""

    def __init__(self, adapter: Adapter, check: Callable[[], None], memory: ExpertMemory) -> None:
        """
        Args:
            check: called before each expert; raises to end the reading.
            memory: to read into.
        """
        self.experts = adapter.experts
        self._adapter = adapter
        self._check = check
        self._hasher = AdapterHasher()
        self._memory = memory
        self._disk = background_threads("npu-weave-disk", _READERS)
        self._hashing = background_threads("npu-weave-hash")

    def __enter__(self) -> ExpertReads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for executor in (self._disk, self._hashing):
            executor.shutdown(cancel_futures=error is not None)

    def __iter__(self) -> Iterator[tuple[ExpertTensors, str]]:
        """`AdapterReads.__iter__`."""
        waiting: deque[Future[tuple[ExpertTensors, str]]] = deque()
        for layer, experts in self.experts.items():
            for expert in experts:
                self._check()
                reading = self._disk.submit(self._read, layer, expert)
                waiting.append(self._hashing.submit(self._hash, layer, expert, reading))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def give_back(self, experts: Sequence[ExpertTensors]) -> None:
        """`AdapterReads.give_back`."""
        self._memory.give_back(experts)

    @property
    def digest(self) -> str:
        """`AdapterReads.digest`."""
        return self._hasher.digests().adapter

    def _read(self, layer: int, expert: int) -> ExpertTensors:
        return self._adapter.expert(layer, expert, self._memory.take())

    def _hash(self, layer: int, expert: int, reading: Future[ExpertTensors]) -> tuple[ExpertTensors, str]:
        tensors = reading.result()
        return tensors, self._hasher.add_loaded(layer, expert, tensors)
