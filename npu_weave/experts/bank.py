"""All MoE layers together: an adapter's experts go in and out of every layer, or of none."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from npu_weave.errors import CapacityError, IntegrityError
from npu_weave.experts.admission import most_rows
from npu_weave.experts.layer import ExpertLayer, summary
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import LeasedRow, PreparedInstall
from npu_weave.memory.pool import PagePool

SLICE_EXPERTS = 8
"""Experts whose rows are leased, or freed, at once: a fraction of a millisecond of the step thread."""


class ExpertBank:
    """The expert weights of the whole model on one device.

    `install` is the device half of the load transaction: lease rows, map, copy, fence, verify, publish. A failure
    at any point leaves rows, pages, maps and bytes as they were. Experts whose content is on the device already share
    its row; they are neither copied nor verified again. Not thread-safe.
    """

    def __init__(self, layers: Sequence[ExpertLayer], pool: PagePool, *, slots: int, verify: bool = True) -> None:
        self.layers: dict[int, ExpertLayer] = {layer.index: layer for layer in layers}
        self.pool = pool
        self.slots = slots
        self.base_pages = pool.in_use
        self._verify = verify
        self._used: set[int] = set()
        self._preparing: PreparedInstall | None = None
        self._leaving: deque[tuple[ExpertLayer, int]] = deque()  # layers with rows to be freed, and how many

    def install(self, slot: int, adapter: PackedAdapter) -> None:
        """Put `adapter` into `slot` (1 ... slots), which must be empty, and publish it.

        Raises:
            CapacityError: rows or memory do not suffice.
            DriverError: a call of the driver failed.
            IntegrityError: a row does not hold what was written.
        """
        prepared = self.prepare(slot, adapter)
        try:
            while prepared.lease_next():
                pass
            while prepared.copy_next():
                pass
            prepared.publish()
        except BaseException:
            prepared.abort()
            raise

    def stock(self, adapter: PackedAdapter) -> int:
        """Have pages made for `adapter`, as far as its size tells how many, so that `prepare` finds them. Any thread.

        Returns:
            How many, for `PagePool.unstock`.
        """
        weights = [weight for packed in adapter.layers.values() for weight in packed.weights.values()]
        pages = sum(-(-weight.nbytes // self.pool.page_bytes) for weight in weights)
        self.pool.stock(pages)
        return pages

    def prepare(self, slot: int, adapter: PackedAdapter) -> PreparedInstall:
        """As `install`, but bit by bit: nothing is leased yet, and another thread can copy."""
        self._check_slot(slot, occupied=False)
        self._check_nothing_is_prepared()
        leased: list[ExpertLayer] = []

        def lease(layers: Sequence[int]) -> list[LeasedRow]:
            rows = []
            for index in layers:
                rows += self._lease(self.layers[index], slot, adapter)
                leased.append(self.layers[index])
            return rows

        def give_back() -> None:
            self._preparing = None
            self._withdraw(slot, reversed(leased))
            self._free_all()

        def publish() -> None:
            self.pool.driver.fence()
            self._each(adapter, lambda layer, index: layer.publish(slot, adapter.layers[index]))
            self._preparing = None

        self._used.add(slot)
        leases = [partial(lease, layers) for layers in _slices(adapter)]
        self._preparing = PreparedInstall(leases, verify=self._verify, publish=publish, abort=give_back)
        return self._preparing

    def remove(self, slot: int) -> None:
        """Take the adapter out of `slot`: maps, then rows and pages, once no kernel reads them any more.

        Raises:
            DriverError: the fence failed; nothing is changed then. Pages that cannot be unmapped are no failure, see
                `ExpertLayer.free`.
        """
        self.withdraw(slot)
        self._free_all()

    def withdraw(self, slot: int) -> None:
        """As `remove`, but rows and pages that nobody else uses are left to `free_next`. The slot is empty at once.

        Raises:
            DriverError: the fence failed; nothing is changed then.
        """
        self._check_slot(slot, occupied=True)
        self.pool.driver.fence()
        self._withdraw(slot, self.layers.values())

    def free_next(self) -> bool:
        """Free rows and pages of some more layers that `withdraw` left. Returns whether any are left.

        Nobody need wait for that: rows and pages that an adapter lacks are freed when it comes.
        """
        freed = 0
        while self._leaving and freed < SLICE_EXPERTS:
            layer, rows = self._leaving.popleft()
            layer.free()
            freed += rows
        return bool(self._leaving)

    def check_fits(self, adapters: Iterable[PackedAdapter], thing: str) -> None:
        """Make sure that any `slots` of `adapters` can be on the device at once, so that no activation can fail.

        Rows are counted by distinct content, with the bound of `admission.most_rows`: it never admits what may fail,
        and may refuse what would fit when more revisions that share experts are known than there are slots.

        Raises:
            CapacityError: ROWS_EXHAUSTED or MEMORY_EXHAUSTED.
        """
        known = list(adapters)
        pages: Counter[int] = Counter()
        for layer in self.layers.values():
            tuned = [adapter.layers[layer.index] for adapter in known if layer.index in adapter.layers]
            # of every rank, so that all of them decide alike
            for rank in range(layer.placement.ranks):
                rows = most_rows([layer.contents_on(rank, packed) for packed in tuned], self.slots)
                pages[rank] += layer.pages_bound(rows)
                if rows > layer.rows.count:
                    raise CapacityError(
                        "ROWS_EXHAUSTED",
                        f"{thing}, {layer.name}",
                        expected=f"at most {layer.rows.count} adapter rows for the {self.slots} largest at once",
                        got=f"{rows}",
                        remedy="raise npu_weave.adapter_rows, lower --max-loras, or unload an adapter",
                    )
        if self.pool.limit_pages is None or not pages:
            return
        most = max(pages.values())
        free = self.pool.limit_pages - self.base_pages
        if most > free:
            raise CapacityError(
                "MEMORY_EXHAUSTED",
                thing,
                expected=f"at most {free * self.pool.driver.granularity} bytes for the adapters in {self.slots} slots",
                got=f"{most * self.pool.driver.granularity}",
                remedy="raise npu_weave.adapter_memory, lower --max-loras, or unload an adapter",
            )

    def memory(self) -> dict[str, int]:
        """Reserved, mapped and exactly needed bytes over all layers, what sharing saves, and pages in use.

        See `layer.summary`.
        """
        return {**summary(self.layers), "pages": self.pool.in_use}

    def check_integrity(self, contents: Mapping[int, PackedAdapter] | None = None) -> None:
        """Check every layer, and the pages against the driver's own count.

        Args:
            contents: slot -> the adapter that it holds: every row that these slots reach, shared or not, is compared
                with it bit by bit.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        for layer in self.layers.values():
            layer.check_integrity()
            if set(layer.owned) - self._used:
                raise IntegrityError("MAP_INCONSISTENT", layer.name, expected=str(self._used), got=str(layer.owned))
        self.pool.check_integrity()
        for slot, adapter in (contents or {}).items():
            self._check_slot(slot, occupied=True)
            for index, layer in self.layers.items():
                packed = adapter.layers.get(index)
                if tuple(layer.map.rows_of(slot)) != (packed.experts if packed else ()):
                    raise IntegrityError("MAP_INCONSISTENT", f"{layer.name} slot {slot}", expected=adapter.name)
                if packed:
                    layer.verify(slot, packed)

    def _lease(self, layer: ExpertLayer, slot: int, adapter: PackedAdapter) -> list[LeasedRow]:
        packed, thing = adapter.layers[layer.index], f"adapter {adapter.name!r}"
        try:
            return layer.lease(slot, packed, thing)
        except CapacityError:
            if not self._leaving:
                raise
            self._free_all()  # pages of other layers: the layer's own it has freed itself
            return layer.lease(slot, packed, thing)

    def _withdraw(self, slot: int, layers: Iterable[ExpertLayer]) -> None:
        self._leaving += [(layer, layer.withdraw(slot)) for layer in layers]
        self._used.discard(slot)

    def _free_all(self) -> None:
        while self.free_next():
            pass

    def _check_nothing_is_prepared(self) -> None:
        if self._preparing is not None:
            raise IntegrityError(
                "SLOT_STATE", "install", expected="no other adapter being prepared", got="one whose rows may be shared"
            )

    def _check_slot(self, slot: int, *, occupied: bool) -> None:
        if not 1 <= slot <= self.slots or (slot in self._used) != occupied:
            state = "an occupied" if occupied else "an empty"
            raise IntegrityError(
                "SLOT_STATE", f"slot {slot}", expected=f"{state} slot of 1 ... {self.slots}", got=str(self._used)
            )

    def _each(self, adapter: PackedAdapter, action: Callable[[ExpertLayer, int], None]) -> None:
        for index in adapter.layers:
            action(self.layers[index], index)


def _slices(adapter: PackedAdapter) -> Iterator[list[int]]:
    """The layers of `adapter`, in order, a few at a time: enough for `SLICE_EXPERTS`. The same on all ranks."""
    layers: list[int] = []
    experts = 0
    for index, packed in adapter.layers.items():
        layers.append(index)
        experts += len(packed.experts)
        if experts >= SLICE_EXPERTS:
            yield layers
            layers, experts = [], 0
    if layers:
        yield layers
