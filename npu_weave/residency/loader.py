"""The worker's side of loads: files are read and packed on a thread of their own, the step thread only takes over."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial

from npu_weave.errors import IntegrityError, WeaveError
from npu_weave.experts.packed import PackedAdapter
from npu_weave.residency.load_identity import Identity
from npu_weave.residency.load_reader import AdapterReader
from npu_weave.residency.load_threads import process_is_ending
from npu_weave.residency.store import AdapterStore

logger = logging.getLogger(__name__)

READING, READ, STAGED = "reading", "read", "staged"

LoadState = dict[str, str]
"""``{"stage": READING | READ | STAGED, "digest": ...}``, or the error of a load that failed (`WeaveError.to_dict`)."""


@dataclass
class _Load:
    """One revision on its way into the store.

    Attributes:
        packed: its host copy, as soon as there is one.
        reading: the read that will give it; None when the host copy was there already.
        cancelled: tells the read to end.
        error: why it failed.
    """

    packed: PackedAdapter | None = None
    reading: Future[PackedAdapter] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    error: WeaveError | None = None


class AdapterLoader:
    """Loads of one worker, from `begin` to `commit` or `cancel`.

    All methods are called on the step thread and return at once: what takes time runs on `thread`. The engine core
    begins a load on all ranks, commits it when all have read, and cancels it everywhere when one has failed. Until
    `commit` nothing of a load can be seen in the store.

    Attributes:
        reader: does the reading.
        disk_reads: adapters read from files since the start.
    """

    def __init__(self, reader: AdapterReader, store: AdapterStore, thread: Executor) -> None:
        self.reader = reader
        self.disk_reads = 0
        self._store = store
        self._thread = thread
        self._loads: dict[int, _Load] = {}

    def begin(self, revision: int, name: str, path: str, digest: str, identity: Identity | None) -> None:
        """Start to load `revision`.

        Args:
            revision: id that is neither staged nor being loaded.
            name: for messages.
            path: the adapter's directory.
            digest: its content, where that is known: a host copy then saves the reading.
            identity: the state of the directory to be loaded; None for any.

        Raises:
            IntegrityError: REVISION_STAGED.
        """
        if revision in self._loads or revision in self._store.staged:
            raise IntegrityError("REVISION_STAGED", f"revision {revision}", expected="a new id", got="a known one")
        load = self._loads[revision] = _Load()
        known = self._store.reuse(digest) if digest else None
        if known is not None:
            load.packed = dataclasses.replace(known, name=name)
            return
        self.disk_reads += 1
        stop = partial(_any_of, load.cancelled.is_set, process_is_ending)
        load.reading = self._thread.submit(self.reader.read, name, path, digest, identity, stop)

    def states(self) -> dict[int, LoadState]:
        """Where every load stands."""
        return {revision: self._state(revision, load) for revision, load in self._loads.items()}

    def commit(self, revision: int) -> None:
        """Stage a load that has been read, as `AdapterStore.stage`. It is over then, also when that fails.

        Raises:
            CapacityError, DriverError, IntegrityError: see `AdapterStore.stage`; REVISION_NOT_STAGED, there is no such
                load, or it has not been read.
        """
        load = self._loads.get(revision)
        if load is None or self._packed(load) is None:
            raise IntegrityError("REVISION_NOT_STAGED", f"revision {revision}", expected="a finished read", got="none")
        assert load.packed is not None
        try:
            self._store.stage(revision, load.packed)
        except WeaveError:
            self.cancel(revision)
            raise
        del self._loads[revision]

    def cancel(self, revision: int) -> bool:
        """Give up a load. A host copy that was there before stays in the cache. Returns whether there was a load."""
        load = self._loads.pop(revision, None)
        if load is None:
            return False
        load.cancelled.set()
        if load.reading is not None:
            load.reading.cancel()
        elif load.packed is not None:
            self._store.keep(load.packed)
        return True

    def _state(self, revision: int, load: _Load) -> LoadState:
        packed = self._packed(load)
        if load.error is not None:
            return load.error.to_dict()
        return {"stage": READING} if packed is None else {"stage": READ, "digest": packed.digest}

    def _packed(self, load: _Load) -> PackedAdapter | None:
        """The host copy, if it is there by now; notes the error of a read that failed."""
        if load.packed is None and load.error is None and load.reading is not None and load.reading.done():
            error = load.reading.exception()
            if error is None:
                load.packed = load.reading.result()
            elif isinstance(error, WeaveError):
                load.error = error
            else:
                logger.error("unexpected failure while an adapter was read", exc_info=error)
                load.error = WeaveError("WORKER_FAILED", "read", got=f"{type(error).__name__}: {error}")
        return load.packed


def _any_of(*conditions: Callable[[], bool]) -> bool:
    return any(condition() for condition in conditions)
