"""One MoE layer: its virtual weight tensors, its adapter rows, its expert map."""

from __future__ import annotations

import functools
import logging
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from npu_weave.errors import DriverError, IntegrityError
from npu_weave.experts.expert_map import ExpertMap
from npu_weave.experts.packed import PackedLayer
from npu_weave.experts.placement import ONE_RANK, ExpertPlacement
from npu_weave.experts.port import MoELayerPort
from npu_weave.experts.prepared import LeasedRow, row_content
from npu_weave.experts.row_users import RowUsers
from npu_weave.experts.rows import RankedRows
from npu_weave.memory.pool import PagePool
from npu_weave.memory.row_bytes import same_bits
from npu_weave.memory.virtual_tensor import VirtualTensor

logger = logging.getLogger(__name__)


class ExpertLayer:
    """The expert weights of one layer, base and adapters, in virtual tensors of the same row numbering.

    Rows are numbered over all ranks of expert parallelism (`ExpertPlacement`); only this rank's have memory here. The
    first of each rank are its base experts, mapped for good; the rest belong to the row allocator, which accounts for
    every rank's rows, so that all ranks agree on the map.
    Construction moves the engine's weights into the virtual tensors and rebinds its parameters to them; when it fails,
    the parameters are as before and every page is back in the pool.

    Experts with equal content on one rank, in whichever slots, share one row: it is copied once and unmapped with its
    last user.

    Args:
        port: the engine's layer. Its parameters are rebound.
        pool: where pages come from.
        adapter_rows: rows of each rank beyond its base experts'.
        slots: adapters on the device at once.
        placement: where experts lie.

    Attributes:
        owned: slot -> for each of its experts, ascending, the row that serves it: the expert's own, or one shared with
            other slots.
        owned_hash: of all of `owned`, kept up to date: equal on ranks that agree.
        users: how many experts of slots use each adapter row.
    """

    def __init__(
        self,
        port: MoELayerPort,
        pool: PagePool,
        *,
        adapter_rows: int,
        slots: int,
        placement: ExpertPlacement = ONE_RANK,
    ) -> None:
        self.index = port.index
        self.name = port.name
        self.num_experts = port.num_experts
        self.placement = placement
        self.base_experts = placement.share(port.num_experts)
        rows = self.base_experts + adapter_rows
        self.rows = RankedRows(placement.ranks, rows, adapter_rows)
        self.users = RowUsers()
        self._page = pool.driver.granularity
        self.tensors: dict[str, VirtualTensor] = {}
        self._move_in(port, pool, rows)
        device = next(iter(self.tensors.values())).tensor.device
        self.map = ExpertMap(slots, placement.base_rows(port.num_experts, rows), device)
        self.owned: dict[int, list[int]] = {}
        self.owned_hash = 0
        self._unpublished: set[int] = set()
        self._leaving: list[list[int]] = []
        self._contents: WeakKeyDictionary[PackedLayer, tuple[str, ...]] = WeakKeyDictionary()
        self._contents_on: WeakKeyDictionary[PackedLayer, dict[int, list[str]]] = WeakKeyDictionary()

    def contents(self, packed: PackedLayer) -> tuple[str, ...]:
        """For each expert of `packed` a name of its content. Found once.

        Equal content has equal names in any adapter, on the same rank; by them experts share rows. Within one adapter
        no name stands twice, the second expert with some content has another name than the first: a token's top-k ids
        are distinct, kernels may rely on it, and so they stay after rerouting.
        """
        names = self._contents.get(packed)
        if names is None:
            seen = Counter[str]()
            names = ()
            for rank, digest in zip(self.ranks_of(packed), packed.content_digests, strict=True):
                content = f"{rank} {digest}"
                names += (f"{content} {seen[content]}",)
                seen[content] += 1
            self._contents[packed] = names
        return names

    def contents_on(self, rank: int, packed: PackedLayer) -> list[str]:
        """As `contents`, of the experts that lie on `rank`. Found once."""
        by_rank = self._contents_on.get(packed)
        if by_rank is None:
            by_rank = self._contents_on[packed] = defaultdict(list)
            for content, own in zip(self.contents(packed), self.ranks_of(packed), strict=True):
                by_rank[own].append(content)
        return by_rank.get(rank, [])

    def ranks_of(self, packed: PackedLayer) -> list[int]:
        """For each expert of `packed` the rank that it lies on."""
        return [self.placement.rank_of(expert, self.num_experts) for expert in packed.experts]

    def lease(self, slot: int, packed: PackedLayer, thing: str) -> list[LeasedRow]:
        """Give every expert of `packed` a row for `slot`; nothing is copied or published yet.

        Content that no row holds gets a row of its own, mapped and to be copied; the rest is only counted. Until it is
        copied nothing else may be leased, as that could share the row.

        Raises:
            CapacityError, DriverError: nothing is changed then.
        """
        self.free()
        contents, ranks = self.contents(packed), self.ranks_of(packed)
        absent = {content: position for position, content in enumerate(contents) if self.users.row_of(content) is None}
        fresh = self.rows.allocate([ranks[position] for position in absent.values()], f"{thing}, {self.name}")
        experts = [packed.experts[position] for position in absent.values()]
        try:
            here = [(row, expert) for row, expert in zip(self.local(fresh), experts, strict=True) if row is not None]
            for tensor in self.tensors.values():
                tensor.map_rows([row for row, _ in here])
            leased = [
                LeasedRow(tensor, row, packed.weights[name], packed.position_of[expert])
                for name, tensor in self.tensors.items()
                for row, expert in here
            ]
        except BaseException:
            self._leaving.append(fresh)
            self.free()
            raise
        # from here on nothing fails, so a count is never too high
        row_of = dict(zip(absent, fresh, strict=True))
        self.owned[slot] = []
        for content in contents:
            held = self.users.row_of(content)
            row = row_of[content] if held is None else held
            self.users.add(content, row)
            self.owned[slot].append(row)
        self.owned_hash ^= self._hash_of(slot)
        self._unpublished.add(slot)
        return leased

    def verify(self, slot: int, packed: PackedLayer) -> None:
        """Compare all rows of this rank that `slot` reaches, shared ones too, with `packed`, bit by bit.

        Raises:
            IntegrityError: ROW_CONTENT, a row does not hold what was written.
        """
        for expert, row in zip(packed.experts, self.local(self.owned[slot]), strict=True):
            if row is None:
                continue
            for name, tensor in self.tensors.items():
                if not same_bits(tensor.row_view(row), packed.weights[name][packed.position_of[expert]]):
                    raise row_content(f"{self.name}.{name} row {row}", expert)

    def publish(self, slot: int, packed: PackedLayer) -> None:
        """Make the placed rows of `slot` visible to the next step."""
        self.map.publish(slot, dict(zip(packed.experts, self.owned[slot], strict=True)))
        self._unpublished.discard(slot)

    def withdraw(self, slot: int) -> int:
        """Take `slot` out of the map, and its rows from it; those that no other slot uses are left to `free`.

        Returns:
            How many these are.
        """
        self.map.withdraw(slot)
        self._unpublished.discard(slot)
        if slot not in self.owned:
            return 0
        self.owned_hash ^= self._hash_of(slot)
        leaving = [row for row in self.owned.pop(slot) if self.users.drop(row)]
        self._leaving.append(leaving)
        return len(leaving)

    def free(self) -> None:
        """Unmap and release rows that are left over.

        Those that the driver fails to unmap stay taken until a later call, or a later `lease`, has unmapped them.
        """
        waiting, self._leaving = self._leaving, []
        for rows in waiting:
            here = [row for row in self.local(rows) if row is not None]
            try:
                for tensor in self.tensors.values():
                    tensor.unmap_rows(tensor.mapped_rows.intersection(here))
            except (DriverError, IntegrityError) as error:  # IntegrityError: PAGE_LOST
                logger.error("%s: rows %s stay mapped, to be freed later: %s", self.name, rows, error)
                self._leaving.append(rows)
            else:
                self.rows.release(rows)

    def pages_bound(self, rows: int) -> int:
        """Most pages that any `rows` adapter rows of this layer on one rank can need, however they lie."""
        first, count = self.base_experts, self.rows.count
        return sum(_pages_bound(tensor.row_bytes, self._page, first, count, rows) for tensor in self.tensors.values())

    @property
    def reserved_bytes(self) -> int:
        """Address space of the tensors, in whole pages."""
        return sum(math.ceil(tensor.tensor.nbytes / self._page) * self._page for tensor in self.tensors.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of one expert, over all tensors."""
        return sum(tensor.row_bytes for tensor in self.tensors.values())

    @property
    def saved_rows(self) -> int:
        """Experts in slots that need no row of their own here, as another slot's serves them."""
        return sum(self.used_here.values()) - len(self.used_here)

    @property
    def used_here(self) -> dict[int, int]:
        """Adapter rows with memory of this rank -> how many experts of slots use each."""
        return {row: count for row, count in self.users.counts.items() if self.rows.rank_of(row) == self.placement.rank}

    def check_integrity(self) -> None:
        """Check the map against rows and their counts, and these against allocator and mappings.

        Raises:
            IntegrityError: MAP_INCONSISTENT, or what the tensors' own checks find.
        """
        counts = self.users.counts
        leaving = [row for rows in self._leaving for row in rows]
        waiting = {row for row in self.local(leaving) if row is not None}
        needed = {*range(self.base_experts), *(row for row in self.local(counts) if row is not None)}
        for name, tensor in self.tensors.items():
            tensor.check_integrity()
            if tensor.mapped_rows - waiting != needed:
                raise _inconsistent(f"{self.name}.{name}", sorted(needed), sorted(tensor.mapped_rows))
        taken = [*counts, *leaving]
        if len(taken) != len(set(taken)) or len(taken) + self.rows.free != self.rows.total or not self.users.agrees():
            raise _inconsistent(f"{self.name} rows", "each adapter row free, used or waiting", taken)
        reached: Counter[int] = Counter()
        base = self.map.base.tolist()
        for slot, line in enumerate(self.map.table.tolist()):
            rows = dict(zip(self.map.rows_of(slot), self.owned.get(slot, []), strict=False))
            meant = [rows.get(expert, row) for expert, row in enumerate(base)]
            if line != meant or len(set(line)) != len(line):
                raise _inconsistent(f"{self.name} slot {slot}", f"{meant}, each row once", line)
            leased = self.owned[slot] if slot in self._unpublished else line
            reached.update(set(leased).difference(base))
        if reached != counts or not self.owned.keys() <= set(range(1, self.map.slots + 1)):
            raise _inconsistent(f"{self.name} users of rows", counts, dict(reached))
        if self.owned_hash != functools.reduce(operator.xor, map(self._hash_of, self.owned), 0):
            raise _inconsistent(f"{self.name} hash of rows", self.owned, self.owned_hash)

    def _move_in(self, port: MoELayerPort, pool: PagePool, rows: int) -> None:
        """Virtual tensors of `rows` rows whose first hold the weights of `port`, and the port bound to them."""
        weights = dict(port.weights())
        bound = []
        try:
            for name, weight in weights.items():
                tensor = self.tensors[name] = VirtualTensor(
                    pool, rows=rows, row_shape=tuple(weight.shape[1:]), dtype=weight.dtype, name=f"{self.name}.{name}"
                )
                tensor.map_rows(range(weight.shape[0]))
                tensor.tensor[: weight.shape[0]].copy_(weight)
            for name, tensor in self.tensors.items():
                bound.append(name)
                port.rebind(name, tensor.tensor)
        except BaseException:
            for name in bound:
                port.rebind(name, weights[name])
            for tensor in self.tensors.values():
                tensor.close()
            raise

    def local(self, rows: Iterable[int]) -> list[int | None]:
        """For each of `rows` its place in this rank's tensors, or None for another rank's."""
        first = self.placement.rank * self.rows.rows_per_rank
        return [row - first if self.rows.rank_of(row) == self.placement.rank else None for row in rows]

    def _hash_of(self, slot: int) -> int:
        return hash((slot, *self.owned[slot]))  # of integers: the same in every process


def _pages_bound(row_bytes: int, page: int, first: int, count: int, rows: int) -> int:
    # the page at the end of the base rows is there already
    span = math.ceil((first + count) * row_bytes / page) - math.ceil(first * row_bytes / page)
    # rows start at multiples of the common divisor, at worst that far before the end of a page
    per_row = 1 + math.ceil((row_bytes - math.gcd(row_bytes, page)) / page)
    return min(rows * per_row, span)


def _inconsistent(thing: str, expected: object, got: object) -> IntegrityError:
    return IntegrityError("MAP_INCONSISTENT", thing, expected=str(expected), got=str(got))


def summary(layers: Mapping[int, ExpertLayer]) -> dict[str, int]:
    """Over all layers: bytes of reserved address space, of mapped pages, and what the live rows exactly need; adapter
    rows that serve several experts of slots; experts that need no row of their own, and the bytes of these."""
    tensors = [tensor for layer in layers.values() for tensor in layer.tensors.values()]
    return {
        "reserved_bytes": sum(layer.reserved_bytes for layer in layers.values()),
        "mapped_bytes": sum(tensor.mapped_bytes for tensor in tensors),
        "exact_bytes": sum(len(tensor.mapped_rows) * tensor.row_bytes for tensor in tensors),
        "shared_rows": sum(count > 1 for layer in layers.values() for count in layer.used_here.values()),
        "saved_rows": sum(layer.saved_rows for layer in layers.values()),
        "saved_bytes": sum(layer.saved_rows * layer.row_bytes for layer in layers.values()),
    }
