"""The engine's side: which revision an adapter's public id stands for, and which revisions are still in use."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from npu_weave.errors import IntegrityError


@dataclass
class Revision:
    """One content of one adapter, from the moment its load begins until its last request has finished.

    Attributes:
        id: engine-wide id >= 1, never used twice.
        public_id: the id under which the serving layer knows the adapter.
        name: public name.
        path: directory it was read from.
        digest: content digest; empty until it has been read, and known by the time it is published.
        staged: whether the workers hold it on the host; set by `AdapterDirectory.mark_staged`.
        opening: not published yet; its load decides what becomes of it.
        last_used: counter of the directory when it was last asked for.
    """

    id: int
    public_id: int
    name: str
    path: str
    digest: str
    staged: bool = False
    opening: bool = True
    last_used: int = field(default=0, compare=False)


class AdapterDirectory:
    """Adapters by public id, each standing for one revision at a time.

    Re-pointing an id publishes a new revision and retires the old one, which lives on until no request uses it.
    Requests between arrival and the scheduler are held as `pending`, so a retired revision cannot vanish under
    them; from then on the scheduler's own table of requests says who uses what. Thread-safe: requests arrive on the
    input thread, loads and steps run on the engine's main thread.
    """

    def __init__(self, host_limit: int) -> None:
        self.host_limit = host_limit
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._clock = itertools.count(1)
        self._current: dict[int, Revision] = {}
        self._revisions: dict[int, Revision] = {}
        self._former_paths: dict[int, set[str]] = {}
        self._pending: dict[str, int] = {}
        self._opening = 0
        self._staged = 0

    def create(self, public_id: int, name: str, path: str, digest: str = "") -> Revision:
        """A new revision that nothing points to yet."""
        with self._lock:
            revision = Revision(next(self._ids), public_id, name, path, digest, last_used=next(self._clock))
            self._revisions[revision.id] = revision
            self._opening += 1
            return revision

    def mark_staged(self, revision: Revision, staged: bool = True) -> None:
        """Note whether the workers hold `revision`, which has not been forgotten, on the host."""
        with self._lock:
            self._staged += staged - revision.staged
            revision.staged = staged

    def publish(self, revision: Revision) -> None:
        """Make `revision` what its public id stands for; the one before it is retired."""
        with self._lock:
            previous = self._current.get(revision.public_id)
            if previous is not None and previous.path != revision.path:
                self._former_paths.setdefault(revision.public_id, set()).add(previous.path)
            self._former_paths.get(revision.public_id, set()).discard(revision.path)
            self._current[revision.public_id] = revision
            self._opening -= revision.opening
            revision.opening = False

    def retire(self, public_id: int) -> Revision | None:
        """Take the public id out of service. Returns the revision it stood for."""
        with self._lock:
            self._former_paths.pop(public_id, None)
            return self._current.pop(public_id, None)

    def forget(self, revision: Revision) -> None:
        """Remove a revision that nothing points to and nobody uses."""
        with self._lock:
            if self._revisions.pop(revision.id, None) is not None:
                self._opening -= revision.opening
                self._staged -= revision.staged
            if self._current.get(revision.public_id) is revision:
                del self._current[revision.public_id]

    def find(self, public_id: int, name: str, path: str) -> Revision | None:
        """The revision that serves a request made for (id, name, path), or None when it has to be loaded first.

        A request that still names the path from before a re-point gets the current revision.
        """
        with self._lock:
            current = self._current.get(public_id)
            former = self._former_paths.get(public_id, set())
            if current is None or current.name != name or not (path == current.path or path in former):
                return None
            current.last_used = next(self._clock)
            return current

    def current(self, public_id: int) -> Revision | None:
        """What the public id stands for now."""
        with self._lock:
            return self._current.get(public_id)

    def get(self, revision_id: int) -> Revision | None:
        """The revision of that id, retired ones included."""
        with self._lock:
            return self._revisions.get(revision_id)

    def in_service(self) -> list[Revision]:
        """What the public ids stand for."""
        with self._lock:
            return list(self._current.values())

    def revisions(self) -> list[Revision]:
        """All that are not forgotten: in service, on their way into it, and retired with requests."""
        with self._lock:
            return list(self._revisions.values())

    def public_ids(self) -> set[int]:
        """Ids in service."""
        with self._lock:
            return set(self._current)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Hold the directory still, e.g. between `find` and `hold`."""
        with self._lock:
            yield

    def hold(self, request_id: str, revision: Revision) -> None:
        """Keep `revision` alive for a request that has arrived and is not scheduled yet."""
        with self._lock:
            self._pending[request_id] = revision.id

    def release(self, request_id: str) -> None:
        """The request is with the scheduler now (or was refused)."""
        with self._lock:
            self._pending.pop(request_id, None)

    def collectable(self, in_flight: Collection[int]) -> list[Revision]:
        """Retired revisions without requests, pending ones included. One that is still opening is not retired."""
        with self._lock:
            used = set(in_flight) | set(self._pending.values())
            used |= {revision.id for revision in self._current.values()}
            return [r for r in self._revisions.values() if r.id not in used and not r.opening]

    def surplus(self, in_flight: Collection[int], room_for: Revision | None = None) -> list[Revision]:
        """Staged revisions beyond the host limit that no request uses, least recently used first.

        Revisions in use are never among them, so the host may hold more than its limit while they are.

        Args:
            in_flight: revisions that requests of the scheduler use.
            room_for: a revision about to be staged, counted in and never among the surplus.
        """
        with self._lock:
            staged = [revision for revision in self._revisions.values() if revision.staged]
            excess = len(staged) + (room_for is not None) - self.host_limit
            used = set(in_flight) | set(self._pending.values()) | ({room_for.id} if room_for else set())
            idle = sorted((r for r in staged if r.id not in used), key=lambda r: r.last_used)
            return idle[: max(excess, 0)]

    @property
    def has_idle_work(self) -> bool:
        """Whether a retired revision waits for its requests, or the host holds more than its limit. Costs no search."""
        with self._lock:
            return len(self._revisions) - self._opening > len(self._current) or self._staged > self.host_limit

    def check_integrity(self) -> None:
        """Check the counts against what they count.

        Raises:
            IntegrityError: DIRECTORY_STATE.
        """
        with self._lock:
            opening = sum(revision.opening for revision in self._revisions.values())
            staged = sum(revision.staged for revision in self._revisions.values())
            if (opening, staged) != (self._opening, self._staged):
                raise IntegrityError(
                    "DIRECTORY_STATE",
                    "adapter directory",
                    expected=f"{opening} opening, {staged} staged",
                    got=f"{self._opening} opening, {self._staged} staged",
                )
