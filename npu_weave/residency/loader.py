"""The worker's side of loads: files are read and packed on a thread of their own, the step thread only takes over."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from npu_weave.errors import IntegrityError, WeaveError
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import PreparedInstall
from npu_weave.residency.load_identity import Identity
from npu_weave.residency.load_reader import AdapterReader
from npu_weave.residency.load_threads import process_is_ending
from npu_weave.residency.store import AdapterStore
from npu_weave.turns import give_way

logger = logging.getLogger(__name__)

READING, READ, COPYING, COPIED = "reading", "read", "copying", "copied"

LoadState = dict[str, str]
"""``{"stage": one of the above, "digest": ...}`` (once it is known), or the error of a load that failed
(`WeaveError.to_dict`)."""


@dataclass
class _Load:
    """One revision on its way into the store.

    Attributes:
        packed: its host copy, as soon as it is ready to be committed.
        reused: the host copy that was there before, and saves the reading.
        reading: gives the host copy, when pages are made for it too.
        pages: made for it (`ExpertBank.stock`).
        committed: whether the store has it.
        install: what its slot still lacks, then; None when no slot is free.
        leased: whether all of its rows are.
        copying: the writing of its rows, once they are leased; None when it has none.
        cancelled: tells the read to end.
        error: why it failed.
    """

    packed: PackedAdapter | None = None
    reused: PackedAdapter | None = None
    reading: Future[PackedAdapter] | None = None
    pages: int = 0
    committed: bool = False
    install: PreparedInstall | None = None
    leased: bool = False
    copying: Future[None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    error: WeaveError | None = None


class AdapterLoader:
    """Loads of one worker: `begin`, `commit`, `publish`, or `cancel` at any time.

    All methods are called on the step thread and return at once: reading and packing run on one thread, the writing of
    rows on another. The engine core begins a load on all ranks, commits it, a few layers at a time, when all have read,
    publishes it when all have written, and cancels it everywhere when one has failed. No step may use a revision before
    it is published.

    Attributes:
        reader: does the reading.
        disk_reads: adapters read from files since the start.
    """

    def __init__(self, reader: AdapterReader, store: AdapterStore, *, reading: Executor, copying: Executor) -> None:
        self.reader = reader
        self.disk_reads = 0
        self._store = store
        self._reading = reading
        self._copying = copying
        self._loads: dict[int, _Load] = {}

    @property
    def busy(self) -> bool:
        """Whether there are loads that have not ended."""
        return bool(self._loads)

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
            load.reused = dataclasses.replace(known, name=name)
            # not behind adapters that come from disk
            load.reading = self._copying.submit(self._stocked, load, load.reused)
            return
        self.disk_reads += 1
        load.reading = self._reading.submit(self._read, load, name, path, digest, identity)

    def states(self) -> dict[int, LoadState]:
        """Where every load stands."""
        return {revision: self._state(revision, load) for revision, load in self._loads.items()}

    def commit(self, revision: int) -> bool:
        """Hand a load that has been read to the store, as `AdapterStore.prepare`, lease rows of some layers, and once
        all are leased, begin to write them.

        Returns:
            Whether layers are left, for another call.

        Raises:
            CapacityError, DriverError: it does not fit, or its rows cannot be mapped; the load is over then.
            IntegrityError: REVISION_NOT_STAGED, there is no such load, or it has not been read.
        """
        load = self._loads.get(revision)
        packed = None if load is None else self._packed(load)
        if load is None or packed is None or load.leased:
            raise IntegrityError("REVISION_NOT_STAGED", f"revision {revision}", expected="a finished read", got="none")
        try:
            if not load.committed:
                load.install = self._store.prepare(revision, packed)
                load.committed = True
            if load.install is not None and load.install.lease_next():
                return True
        except WeaveError:
            self.cancel(revision)
            raise
        self._unstock(load)
        load.leased = True
        if load.install is not None:
            load.copying = self._copying.submit(_write_rows, load.install)
        return False

    def publish(self, revision: int) -> None:
        """End a load whose rows are written: the next step may use it.

        Raises:
            DriverError: see `AdapterStore.publish`; to be cancelled then.
            IntegrityError: COPY_UNFINISHED; REVISION_NOT_STAGED, there is no such load, or it was not committed.
        """
        load = self._loads.get(revision)
        if load is None or not load.leased:
            raise IntegrityError("REVISION_NOT_STAGED", f"revision {revision}", expected="a committed load", got="none")
        self._store.publish(revision)
        del self._loads[revision]

    def cancel(self, revision: int) -> bool:
        """Give up a load. A host copy that was there before stays in the cache. Returns whether there was a load."""
        load = self._loads.pop(revision, None)
        if load is None:
            return False
        load.cancelled.set()
        if load.committed:
            self._unstock(load)
            self._store.drop(revision)
            return True
        packed = self._packed(load)
        if load.reused is not None:
            self._store.keep(load.reused)
        elif packed is not None:
            self._store.cache.free(packed)
        if load.reading is not None and not load.reading.cancel():
            load.reading.add_done_callback(lambda _: self._unstock(load))
        return True

    def _read(self, load: _Load, name: str, path: str, digest: str, identity: Identity | None) -> PackedAdapter:
        stop = partial(_any_of, load.cancelled.is_set, process_is_ending)
        return self._stocked(load, self.reader.read(name, path, digest, identity, stop))

    def _stocked(self, load: _Load, packed: PackedAdapter) -> PackedAdapter:
        """Have pages made for `packed` on this thread, so that the step thread does not wait for them."""
        load.pages = self._store.bank.stock(packed)
        return packed

    def _unstock(self, load: _Load) -> None:
        pages, load.pages = load.pages, 0
        self._store.bank.pool.unstock(pages)

    def _state(self, revision: int, load: _Load) -> LoadState:
        packed = self._packed(load)
        if load.copying is not None and load.copying.done():
            load.error = load.error or _error_of(load.copying)
        if load.error is not None:
            return load.error.to_dict()
        if packed is None:
            return {"stage": READING}
        if not load.committed:
            return {"stage": READ, "digest": packed.digest}
        written = load.leased and (load.copying is None or load.copying.done())
        return {"stage": COPIED if written else COPYING, "digest": packed.digest}

    def _packed(self, load: _Load) -> PackedAdapter | None:
        """The host copy, if it is there by now; notes the error of a read that failed."""
        if load.packed is None and load.error is None and load.reading is not None and load.reading.done():
            load.error = _error_of(load.reading)
            if load.error is None:
                load.packed = load.reading.result()
        return load.packed


def _write_rows(install: PreparedInstall) -> None:
    while install.copy_next():
        if process_is_ending():
            return
        give_way()


def _error_of(work: Future[Any]) -> WeaveError | None:
    """Why work that is done has failed; None when it has not."""
    error = work.exception()
    if error is None or isinstance(error, WeaveError):
        return error
    logger.error("unexpected failure while an adapter was loaded", exc_info=error)
    return WeaveError("WORKER_FAILED", "load", got=f"{type(error).__name__}: {error}")


def _any_of(*conditions: Callable[[], bool]) -> bool:
    return any(condition() for condition in conditions)
