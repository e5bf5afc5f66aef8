"""The worker's side: adapters staged on the host and installed in device slots."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from npu_weave.errors import CapacityError, IntegrityError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import PreparedInstall
from npu_weave.residency.host_cache import HostCache


class _Preparing(NamedTuple):
    """The revision whose rows are being written, and the slot it will have."""

    revision: int
    slot: int
    install: PreparedInstall


class AdapterStore:
    """Adapter revisions of one worker: host copies in kernel layout, and which of them sit in device slots.

    A revision is staged once and may then be activated and evicted any number of times without touching the disk.
    `stage` admits a revision only if any `slots` staged revisions fit on the device together, so that `activate`,
    which runs inside a step, cannot fail for want of room. All decisions depend only on the sequence of calls, so
    that the ranks of a tensor-parallel group, which see the same calls, decide alike. Not thread-safe.

    What is dropped stays in the host cache, so that staging the same content again needs no disk. Revisions of equal
    content share one host copy.

    Attributes:
        staged: revision -> host copy.
        cache: host copies that no revision uses. Without a limit in bytes it takes what `staged` leaves of
            `host_limit` adapters.
        last_used: int64 ``[slots + 1]``, greater the later a slot was used by a step (`TokenSlots.fill`); what eviction
            goes by.
        evictions: adapters that left a slot for another since the start.
    """

    def __init__(self, bank: ExpertBank, cache: HostCache | None = None, *, host_limit: int = 0) -> None:
        self.bank = bank
        self.cache = HostCache(0) if cache is None else cache
        self.staged: dict[int, PackedAdapter] = {}
        self._host_limit = host_limit
        self._slot_of: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._preparing: _Preparing | None = None
        self.evictions = 0
        self.last_used: npt.NDArray[np.int64] = np.zeros(bank.slots + 1, dtype=np.int64)

    def slot_of(self, revision: int) -> int | None:
        """The slot of `revision`, or None when it is not on the device."""
        return self._slot_of.get(revision)

    @property
    def resident(self) -> dict[int, int]:
        """Revisions on the device and their slots."""
        return dict(self._slot_of)

    @property
    def pinned(self) -> frozenset[int]:
        """Revisions that are kept on the device."""
        return frozenset(self._pinned)

    def stage(self, revision: int, adapter: PackedAdapter) -> None:
        """Admit `adapter` as `revision`, and install it at once when a slot is free.

        Raises:
            CapacityError: it does not fit beside the revisions staged already; nothing is changed then.
            DriverError, IntegrityError: the installation failed; nothing is changed then.
        """
        slot = self._admit(revision, adapter)
        if slot is not None:
            self.bank.install(slot, adapter)
            self._slot_of[revision] = slot
        self._keep_staged(revision, adapter)

    def prepare(self, revision: int, adapter: PackedAdapter) -> PreparedInstall | None:
        """As `stage`, but where a slot is free it is only meant for it: `publish` ends it, or `drop`.

        No step may use the revision before that. A step that needs the slot takes it: the revision is then staged on
        the host alone.

        Returns:
            What is left to lease, and then to copy, by any thread; None when no slot is free.

        Raises:
            CapacityError: it does not fit beside the revisions staged already; nothing is changed then.
        """
        slot = self._admit(revision, adapter)
        prepared = None
        if slot is not None:
            prepared = self.bank.prepare(slot, adapter)
            self._preparing = _Preparing(revision, slot, prepared)
        self._keep_staged(revision, adapter)
        return prepared

    def publish(self, revision: int) -> None:
        """Put a prepared revision, whose rows are all written, into its slot. Does nothing when it has none.

        Raises:
            DriverError: the fence failed; it can be tried again, or dropped.
            IntegrityError: COPY_UNFINISHED.
        """
        preparing = self._preparing
        if preparing is not None and preparing.revision == revision:
            preparing.install.publish()
            self._slot_of[revision] = preparing.slot
            self._preparing = None

    def reuse(self, digest: str) -> PackedAdapter | None:
        """A host copy of this content, from a staged revision or out of the cache; None when there is neither."""
        shared = next((adapter for adapter in self.staged.values() if adapter.digest == digest), None)
        return self.cache.take(digest) if shared is None else shared

    def keep(self, adapter: PackedAdapter) -> None:
        """Leave a host copy that no revision uses any more to the cache."""
        if all(adapter.digest != other.digest for other in self.staged.values()):
            self.cache.put(adapter)
            self._bound_cache()

    def drop(self, revision: int) -> bool:
        """Forget `revision`: its slot, rows and pages; its host copy goes to the cache. Returns whether it was there.

        Raises:
            DriverError: see `ExpertBank.remove`; nothing is changed then.
        """
        known = self.withdraw(revision)
        while known and self.free_next():
            pass
        return known

    def withdraw(self, revision: int) -> bool:
        """As `drop`, but rows and pages are left to `free_next`."""
        if revision not in self.staged:
            return False
        if self._preparing is not None and self._preparing.revision == revision:
            self._stop_preparing()
        if revision in self._slot_of:
            self.bank.withdraw(self._slot_of[revision])
            del self._slot_of[revision]
        self._pinned.discard(revision)
        self.keep(self.staged.pop(revision))
        return True

    def free_next(self) -> bool:
        """`ExpertBank.free_next`."""
        return self.bank.free_next()

    def activate(self, revisions: Collection[int]) -> list[int]:
        """Make sure that all `revisions` are in slots, evicting idle ones (least recently used first).

        Returns:
            The revisions that had to be installed.

        Raises:
            CapacityError: SLOTS_EXHAUSTED, more revisions than slots.
            IntegrityError: REVISION_NOT_STAGED, a revision was never staged.
        """
        installed = []
        for revision in sorted(revisions):
            if revision in self._slot_of:
                continue
            if revision not in self.staged:
                raise IntegrityError(
                    "REVISION_NOT_STAGED", f"revision {revision}", expected="a staged revision", got="none"
                )
            self._stop_preparing()
            slot = self._free_slot()
            if slot is None:
                slot = self._make_room(revisions)
            self.bank.install(slot, self.staged[revision])
            self._slot_of[revision] = slot
            installed.append(revision)
        return installed

    def pin(self, revision: int) -> bool:
        """Keep `revision` on the device until it is dropped, unless a step needs all slots for others.

        Raises:
            CapacityError: SLOTS_PINNED, no slot would be left for the others.
        """
        if revision not in self.staged:
            return False
        if len(self._pinned | {revision}) >= self.bank.slots and len(self.staged) > self.bank.slots:
            raise CapacityError(
                "SLOTS_PINNED",
                f"revision {revision}",
                expected=f"fewer than {self.bank.slots} pinned adapters",
                got=f"{len(self._pinned)} pinned",
                remedy="raise --max-loras, or unload a pinned adapter",
            )
        self.activate([*self._pinned, revision])
        self._pinned.add(revision)
        return True

    def fingerprint(self) -> str:
        """Digest of what is staged and which slots and rows it has; equal on all ranks of a group."""
        staged = sorted((revision, adapter.digest) for revision, adapter in self.staged.items())
        return _digest(staged, self.resident, self.layout())

    def layout(self) -> str:
        """Digest of which content has which slot and rows, whatever its revision is called; equal on engines that
        installed the same adapters in the same order."""
        slots = sorted((slot, self.staged[revision].digest) for revision, slot in self._slot_of.items())
        layers = self.bank.layers.items()
        return _digest(slots, [(index, layer.rows.rows_per_rank, layer.owned_hash) for index, layer in layers])

    def check_integrity(self) -> None:
        """Check slots against staged revisions, and everything below.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        if not set(self._slot_of) <= set(self.staged) or len(set(self._slot_of.values())) != len(self._slot_of):
            raise IntegrityError(
                "SLOT_STATE", "slots", expected="each a staged revision of its own", got=str(self.resident)
            )
        for revision, slot in self._slot_of.items():
            for index, packed in self.staged[revision].layers.items():
                if tuple(self.bank.layers[index].map.rows_of(slot)) != packed.experts:
                    raise IntegrityError(
                        "MAP_INCONSISTENT", f"slot {slot}, layer {index}", expected=str(packed.experts)
                    )
        self.bank.check_integrity()
        self.cache.check_integrity()

    def _admit(self, revision: int, adapter: PackedAdapter) -> int | None:
        """A free slot for `adapter`, if there is one, when it may be staged."""
        if revision in self.staged:
            raise IntegrityError("REVISION_STAGED", f"revision {revision}", expected="a new id", got="a staged one")
        self._stop_preparing()
        self.bank.check_fits([*self.staged.values(), adapter], f"adapter {adapter.name!r}")
        return self._free_slot()

    def _keep_staged(self, revision: int, adapter: PackedAdapter) -> None:
        self.staged[revision] = adapter
        self._bound_cache()

    def _stop_preparing(self) -> None:
        """Free the slot of a revision that is being prepared, however far it is, so that all ranks do the same."""
        if self._preparing is not None:
            self._preparing.install.abort()
            self._preparing = None

    def _bound_cache(self) -> None:
        if self.cache.limit_bytes is None:
            self.cache.trim(self._host_limit - len(self.staged))

    def _free_slot(self) -> int | None:
        taken = set(self._slot_of.values())
        return next((slot for slot in range(1, self.bank.slots + 1) if slot not in taken), None)

    def _make_room(self, needed: Iterable[int]) -> int:
        wanted = set(needed)
        idle = [revision for revision in self._slot_of if revision not in wanted]
        if idle:
            self.evictions += 1
            # a step's needs come before pins: it must not fail
            leaving = min(idle, key=lambda each: (each in self._pinned, self.last_used[self._slot_of[each]]))
            slot = self._slot_of[leaving]
            self.bank.remove(slot)
            del self._slot_of[leaving]
            return slot
        raise CapacityError(
            "SLOTS_EXHAUSTED",
            "step",
            expected=f"at most {self.bank.slots} adapters at once",
            got=f"{len(wanted)}",
            remedy="raise --max-loras",
        )


def _digest(*state: object) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()
