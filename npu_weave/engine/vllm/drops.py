"""Revisions on their way out of the workers, a few layers before each step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from npu_weave.engine.vllm import worker_calls
from npu_weave.engine.vllm.workers import Answer, WorkerGroup
from npu_weave.errors import WeaveError


class RevisionDrops:
    """Drops of one engine core. Not thread-safe: the engine core's main thread calls, between steps."""

    def __init__(self, workers: WorkerGroup) -> None:
        self._workers = workers
        self._calls: deque[tuple[Answer, list[int]]] = deque()  # with the revisions that each is to drop
        self._then: dict[int, Callable[[], None]] = {}
        self._withdrawn: list[int] = []
        self._failed: list[int] = []

    def __len__(self) -> int:
        """Calls that the workers have not answered."""
        return len(self._calls)

    def __contains__(self, revision: int) -> bool:
        """Whether `revision` is on its way out, or could not be dropped."""
        return revision in self._then

    def begin(self, revision: int, then: Callable[[], None] = lambda: None) -> None:
        """Whatever the workers are told later finds `revision` gone, and its memory free when it needs it.

        Args:
            then: called when the memory is free in any case.
        """
        self._then[revision] = then
        self._drop(revision)

    def poll(self, *, may_wait: bool) -> None:
        """Have more memory freed, if the workers have answered.

        Args:
            may_wait: see `AdapterLoads.poll`; all of it is free then.

        Raises:
            WeaveError: a revision could not be dropped; the next call tries again.
        """
        while self._failed:
            self._drop(self._failed.pop())
        while self._calls and (may_wait or self._calls[0][0].done()):
            answer, revisions = self._calls.popleft()
            try:
                _, more = answer.result()
            except WeaveError:
                self._failed += revisions
                raise
            self._withdrawn += revisions
            if not more:
                self._end()
            elif not self._calls:
                self._calls.append((self._workers.send(worker_calls.free_rows), []))

    def _drop(self, revision: int) -> None:
        self._calls.append((self._workers.send(worker_calls.drop, revision), [revision]))

    def _end(self) -> None:
        """Nothing of the revisions withdrawn so far is left in the workers."""
        ended, self._withdrawn = self._withdrawn, []
        for revision in ended:
            self._then.pop(revision)()
