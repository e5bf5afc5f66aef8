"""The experts of an adapter in order, read and hashed ahead of whoever asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType

from npu_weave.adapters.adapter import Adapter, ExpertTensors
from npu_weave.adapters.digest import AdapterHasher
from npu_weave.residency.load_threads import background_threads

_AHEAD = 6  # experts asked of the disk before they are needed
_READERS = 2  # so that the disk has something to do while one of them copies


class ExpertReads:
    """A context in which an adapter is read, once. While one expert is packed, others are hashed and read."""

    def __init__(self, adapter: Adapter, check: Callable[[], None]) -> None:
        """
        Args:
            check: called before each expert; raises to end the reading.
        """
        self._adapter = adapter
        self._check = check
        self._hasher = AdapterHasher()
        self._spare: deque[ExpertTensors] = deque()
        self._disk = background_threads("npu-weave-disk", _READERS)
        self._hashing = background_threads("npu-weave-hash")

    def __enter__(self) -> ExpertReads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for executor in (self._disk, self._hashing):
            executor.shutdown(cancel_futures=error is not None)

    def __iter__(self) -> Iterator[tuple[ExpertTensors, str]]:
        """Every expert, ascending by layer and id, with its digest.

        Raises:
            AdapterError: see `Adapter.expert`; besides whatever `check` raises.
        """
        waiting: deque[Future[tuple[ExpertTensors, str]]] = deque()
        for layer, experts in self._adapter.experts.items():
            for expert in experts:
                self._check()
                reading = self._disk.submit(self._read, layer, expert)
                waiting.append(self._hashing.submit(self._hash, layer, expert, reading))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def give_back(self, experts: Iterable[ExpertTensors]) -> None:
        """Have the memory of `experts`, which are needed no longer, used for later ones."""
        self._spare.extend(experts)

    @property
    def digest(self) -> str:
        """Of the whole adapter, when all has been read."""
        return self._hasher.digests().adapter

    def _read(self, layer: int, expert: int) -> ExpertTensors:
        try:
            into = self._spare.popleft()
        except IndexError:
            into = None
        return self._adapter.expert(layer, expert, into)

    def _hash(self, layer: int, expert: int, reading: Future[ExpertTensors]) -> tuple[ExpertTensors, str]:
        tensors = reading.result()
        return tensors, self._hasher.add_loaded(layer, expert, tensors)
