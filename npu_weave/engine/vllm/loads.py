"""The engine core's side of loads: from an adapter's name to a revision staged on all workers, while steps go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from vllm.logger import init_logger

from npu_weave.engine.vllm import waiting, worker_calls
from npu_weave.engine.vllm.workers import Answer, WorkerGroup, is_failure
from npu_weave.errors import IntegrityError, WeaveError
from npu_weave.observability.histogram import Histogram
from npu_weave.residency.directory import AdapterDirectory, Revision
from npu_weave.residency.load_opener import AdapterOpener, Opened
from npu_weave.residency.load_reader import load_cancelled
from npu_weave.residency.loader import COPIED, READ
from npu_weave.residency.pins import Pins

logger = init_logger("vllm.npu_weave.core")

ASK_SECONDS = 0.05
"""Time between two questions to the workers how their loads stand."""


class Stage(Enum):
    """How far a load has come: QUEUED behind another of the same id, OPENING its files' headers, OPENED, READING in
    the workers, LEASING their rows, COPYING into these, PUBLISHING: the next step may use it. Then it is over."""

    QUEUED = auto()
    OPENING = auto()
    OPENED = auto()
    READING = auto()
    LEASING = auto()
    COPYING = auto()
    PUBLISHING = auto()


_TAKE_TIME = (Stage.READING, Stage.COPYING)
_HAVE_ROWS = (Stage.LEASING, Stage.COPYING)
_IN_WORKERS = (*_TAKE_TIME, Stage.LEASING, Stage.PUBLISHING)


@dataclass(eq=False)
class Load:
    """One load, shared by all who wait for it.

    Attributes:
        public_id, name, path: what is loaded, as the serving layer knows it.
        again: asked for by somebody who wants the files looked at again; nobody joins it then.
        revision: what it makes; that of an earlier load when only its host copy is missing (`restages`).
        call: what the workers were last told about it, until they have answered.
        done: set when it is over: published, or its error.
        held: requests that wait for it, by id.
    """

    public_id: int
    name: str
    path: str
    again: bool = False
    revision: Revision | None = None
    stage: Stage = Stage.QUEUED
    opening: Future[Opened] | None = None
    opened: Opened | None = None
    call: Answer | None = None
    done: Future[bool] = field(default_factory=Future)
    held: dict[str, Any] = field(default_factory=dict)
    restages: bool = False
    begun: float = field(default_factory=time.monotonic)


class AdapterLoads:
    """Loads of one engine core. Not thread-safe: the engine core's main thread calls, between steps.

    Nothing here waits, and no step waits for anything here: files are opened on a thread of the core, read, packed and
    copied on threads of every worker, which are told before a step and have answered when it is done. `poll` moves each
    load on when all workers have done their part, so all ranks publish a revision or none. Loads of one public id
    follow each other, and so does the copying of all; loads of one directory share the reading. `in_order` they all
    follow each other.
    """

    def __init__(
        self,
        workers: WorkerGroup,
        directory: AdapterDirectory,
        opener: AdapterOpener,
        thread: Executor,
        *,
        make_room: Callable[[Revision], None],
        ended: Callable[[Load, WeaveError | None], None],
        in_order: bool = False,
        pins: Pins | None = None,
    ) -> None:
        """
        Args:
            thread: runs `opener`.
            make_room: drops host copies that are too many once this revision is staged; may raise WeaveError.
            ended: called when a load is over, before those who wait for it are told.
            pins: what names must stand for.
            in_order: a load begins when the one before it is over, so that the order of calls is that of slots.
        """
        self._workers = workers
        self._directory = directory
        self._opener = opener
        self._thread = thread
        self._make_room = make_room
        self._ended = ended
        self._in_order = in_order
        self._pins = pins or Pins({})
        self._loads: list[Load] = []
        self._asked: Future[list[Any]] | None = None
        self._ask_at = 0.0
        self.counts: Counter[str] = Counter(begun=0, succeeded=0, failed=0)
        self._failures: Counter[str] = Counter()
        self._seconds = Histogram()
        waiting.sleep_during(self)

    def __len__(self) -> int:
        return len(self._loads)

    @property
    def busy(self) -> bool:
        """Whether loads are under way."""
        return bool(self._loads)

    @property
    def public_ids(self) -> set[int]:
        """Ids under which something is to be published."""
        return {load.public_id for load in self._loads}

    @property
    def held(self) -> int:
        """Requests that wait for a load."""
        return sum(len(load.held) for load in self._loads)

    def report(self) -> dict[str, Any]:
        """Plain values: loads begun, succeeded and failed, failures by code, seconds of those that succeeded, loads
        under way and requests that wait for them."""
        return {
            **self.counts,
            "failures": dict(self._failures),
            "seconds": self._seconds.report(),
            "under_way": len(self),
            "requests_held": self.held,
        }

    def withdraw(self, request_id: str) -> None:
        """A request waits no longer. Its load goes on: it was asked for."""
        for load in self._loads:
            load.held.pop(request_id, None)

    def under_way(self, public_id: int, name: str, path: str) -> Load | None:
        """The load of (id, name, path) that is on its way and may be joined."""
        asked = (public_id, name, path)
        for load in self._loads:
            if not (load.again or load.restages) and (load.public_id, load.name, load.path) == asked:
                return load
        return None

    def start(self, public_id: int, name: str, path: str, *, again: bool = False) -> Load:
        """A new load of (id, name, path)."""
        return self._start(Load(public_id, name, path, again))

    def join_or_start(self, public_id: int, name: str, path: str) -> Load:
        """The load of (id, name, path) that is on its way, or a new one."""
        return self.under_way(public_id, name, path) or self.start(public_id, name, path)

    def restage(self, revision: Revision) -> Load:
        """The load that brings back the host copy of a known revision."""
        for load in self._loads:
            if load.restages and load.revision is revision:
                return load
        return self._start(Load(revision.public_id, revision.name, revision.path, revision=revision, restages=True))

    def cancel(self, public_id: int) -> bool:
        """Give up what would be published under this id. Returns whether there was anything."""
        wanted = [load for load in self._loads if load.public_id == public_id and not load.restages]
        for load in wanted:
            self._end(load, load_cancelled(load.name))
        return bool(wanted)

    def abandon(self) -> None:
        """Give up everything."""
        while self._loads:
            self._end(self._loads[-1], load_cancelled(self._loads[-1].name))

    def loading(self, revision: Revision) -> bool:
        """Whether a load is about this revision."""
        return any(load.revision is revision for load in self._loads)

    def poll(self, *, may_wait: bool) -> None:
        """Move every load on as far as it can go by now.

        Args:
            may_wait: no step is running or due, so that the workers answer at once and nobody else waits for them.
        """
        for load in list(self._loads):
            if load.stage is Stage.QUEUED and not self._follows(load):
                self._open(load)
            if load.stage is Stage.OPENING and load.opening is not None and load.opening.done():
                self._note_opened(load, load.opening)
            if load.stage is Stage.OPENED and not self._awaits_reading(load):
                self._attempt(load, self._begin)
            if load.call is not None and (may_wait or load.call.done()):
                self._attempt(load, self._take_call, load.call)
        self._ask_workers(may_wait)

    # --- inside ---

    def _start(self, load: Load) -> Load:
        self._loads.append(load)
        self.counts["begun"] += 1
        return load

    def _earlier(self, load: Load) -> list[Load]:
        return self._loads[: self._loads.index(load)]

    def _follows(self, load: Load) -> bool:
        """Whether an earlier load publishes under the same id: the last call is to have the last word."""
        if self._in_order:
            return bool(self._earlier(load))
        return not load.restages and any(
            other.public_id == load.public_id and not other.restages for other in self._earlier(load)
        )

    def _awaits_reading(self, load: Load) -> bool:
        """Whether an earlier load reads the same directory, and will tell what is in it."""
        opened = load.opened
        if opened is None or opened.digest:
            return False
        return any(
            other.stage is Stage.READING and other.opened is not None and other.opened.identity == opened.identity
            for other in self._earlier(load)
        )

    def _open(self, load: Load) -> None:
        if load.restages:
            load.stage = Stage.OPENED
            return
        load.stage = Stage.OPENING
        load.opening = self._thread.submit(self._opener.open, load.name, load.path)

    def _note_opened(self, load: Load, opening: Future[Opened]) -> None:
        error = opening.exception()
        if error is None:
            load.opened = opening.result()
            load.stage = Stage.OPENED
        elif isinstance(error, WeaveError):
            self._end(load, error)
        else:
            logger.error("unexpected failure while adapter %r was opened", load.name, exc_info=error)
            self._end(load, WeaveError("WORKER_FAILED", "open", got=f"{type(error).__name__}: {error}"))

    def _attempt(self, load: Load, step: Callable[..., None], *args: Any) -> None:
        try:
            step(load, *args)
        except WeaveError as error:
            self._end(load, error)

    def _begin(self, load: Load) -> None:
        identity = None
        if load.opened is not None:
            identity, digest = load.opened.identity, load.opened.digest or self._opener.known(load.opened)
            current = self._in_service(load, digest)
            if current is not None and current.staged:
                self._end(load, None)
                return
            if current is not None and self.loading(current):
                return
            load.revision = current or self._directory.create(load.public_id, load.name, load.path, digest)
        revision = load.revision
        assert revision is not None, "opened, or there from the start"
        load.stage = Stage.READING
        asked = (revision.id, revision.name, revision.path, revision.digest, identity)
        load.call = self._workers.send(worker_calls.begin_load, *asked)
        self._ask_at = max(self._ask_at, time.monotonic() + ASK_SECONDS)

    def _in_service(self, load: Load, digest: str) -> Revision | None:
        """The revision in service when it is just what the load is about."""
        current = self._directory.current(load.public_id)
        same = current is not None and (current.name, current.path, current.digest) == (load.name, load.path, digest)
        return current if same else None

    def _take_call(self, load: Load, call: Answer) -> None:
        assert load.revision is not None, "workers know it"
        load.call = None
        outcome = call.result()
        if load.stage is Stage.LEASING:
            _, more = outcome
            if more:
                load.call = self._workers.send(worker_calls.commit_load, load.revision.id)
            else:
                load.stage = Stage.COPYING
        elif load.stage is Stage.PUBLISHING:
            self._directory.mark_staged(load.revision)
            self._end(load, None)

    def _ask_workers(self, may_wait: bool) -> None:
        if not any(load.stage in _TAKE_TIME for load in self._loads):
            return
        if self._asked is None:
            if time.monotonic() < self._ask_at:
                return
            self._asked = self._workers.ask(worker_calls.load_states)
        if not (may_wait or self._asked.done()):
            return
        answers, self._asked = self._asked.result(), None
        self._ask_at = time.monotonic() + ASK_SECONDS
        for load in list(self._loads):
            if load.stage in _TAKE_TIME and load.call is None:
                self._attempt(load, self._take_answers, answers)

    def _take_answers(self, load: Load, answers: list[Any]) -> None:
        assert load.revision is not None, "a load that is read has one"
        states = [answer if is_failure(answer) else answer.get(load.revision.id) for answer in answers]
        for state in states:
            if is_failure(state):
                raise WeaveError.from_dict(state)
        reached = READ if load.stage is Stage.READING else COPIED
        if any(state is None or state["stage"] != reached for state in states):
            return
        digests = {state["digest"] for state in states}
        if len(digests) > 1:
            raise IntegrityError("RANKS_DISAGREE", load.name, expected="one content on all ranks", got=str(digests))
        if load.stage is Stage.COPYING:
            load.stage = Stage.PUBLISHING
            load.call = self._workers.send(worker_calls.publish_load, load.revision.id)
        elif not any(other.stage in _HAVE_ROWS for other in self._loads):
            self._commit(load, load.revision, digests.pop())

    def _commit(self, load: Load, revision: Revision, digest: str) -> None:
        self._pins.check(load.name, digest)
        revision.digest = digest
        if load.opened is not None:
            self._opener.note(load.opened, digest)
        current = self._in_service(load, digest)
        if revision.opening and current is not None and current.staged:
            # read again, and nothing new in it: a second revision would only take memory
            self._workers.run(worker_calls.drop, revision.id)
            self._directory.forget(revision)
            load.revision = current
            self._end(load, None)
            return
        self._make_room(revision)
        load.stage = Stage.LEASING
        load.call = self._workers.send(worker_calls.commit_load, revision.id)

    def _end(self, load: Load, error: WeaveError | None) -> None:
        self._loads.remove(load)
        if error is not None and load.stage in _IN_WORKERS and load.revision is not None:
            try:
                self._workers.run(worker_calls.drop, load.revision.id)
            except WeaveError as second:
                logger.error("adapter %r could not be dropped after a failed load: %s", load.name, second)
                error = second
        if error is None:
            self.counts["succeeded"] += 1
            self._seconds.observe(time.monotonic() - load.begun)
        else:
            self.counts["failed"] += 1
            self._failures[error.code] += 1
        self._ended(load, error)
        if load.done.cancelled():
            return
        if error is None:
            load.done.set_result(True)
        else:
            load.done.set_exception(error)
