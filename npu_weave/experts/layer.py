"""One MoE layer: its virtual weight tensors, its adapter rows, its expert map."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)
from npu_weave.errors import DriverError, IntegrityError
from npu_weave.experts.expert_map import ExpertMap
from npu_weave.experts.packed import PackedLayer
from npu_weave.experts.port import MoELayerPort
from npu_weave.experts.rows import RowAllocator
from npu_weave.experts.token_slots import TokenSlots
from npu_weave.memory.pool import PagePool
from npu_weave.memory.virtual_tensor import VirtualTensor

logger = logging.getLogger(__name__)


class ExpertLayer:
    """The expert weights of one layer, base and adapters, in virtual tensors of the same row numbering.

    Rows ``0 ... num_experts - 1`` are the base experts, mapped for good; the rest belong to the row allocator.
    Construction moves the engine's weights into the virtual tensors and rebinds its parameters to them; when it fails,
    the parameters are as before and every page is back in the pool.

    Attributes:
        owned: slot -> its rows.
    """

    def __init__(self, port: MoELayerPort, pool: PagePool, *, adapter_rows: int, slots: int) -> None:
        self.index = port.index
        self.name = port.name
        self.num_experts = port.num_experts
        self.rows = RowAllocator(port.num_experts, adapter_rows)
        self._page = pool.driver.granularity
        self.tensors: dict[str, VirtualTensor] = {}
        self._move_in(port, pool, port.num_experts + adapter_rows)
        device = next(iter(self.tensors.values())).tensor.device
        self.map = ExpertMap(slots, port.num_experts, device)
        self.owned: dict[int, list[int]] = {}
        self._stranded: list[list[int]] = []

    def rerouting(self, token_slots: TokenSlots, ids: torch.Tensor) -> torch.Tensor:
        """The rows for `ids` ``[tokens, top_k]`` of this step: ``map[slot of token, id]``."""
        rerouted: torch.Tensor = torch.ops.npu_weave.reroute(ids, token_slots.buffer, self.map.table)
        return rerouted

    def place(self, slot: int, packed: PackedLayer, thing: str) -> None:
        """Allocate, map and copy the rows of `packed` for `slot`; nothing is published yet.

        Raises:
            CapacityError, DriverError: nothing is changed then.
        """
        if self._stranded:
            self._free([])
        rows = self.rows.allocate(len(packed.experts), f"{thing}, {self.name}")
        try:
            for tensor in self.tensors.values():
                tensor.map_rows(rows)
            for name, tensor in self.tensors.items():
                for row, weight in zip(rows, packed.weights[name], strict=True):
                    tensor.row_view(row).copy_(weight)
        except BaseException:
            self._free(rows)
            raise
        self.owned[slot] = rows

    def verify(self, slot: int, packed: PackedLayer) -> None:
        """Compare the rows of `slot` with `packed`, bit by bit.

        Raises:
            IntegrityError: ROW_CONTENT, a row does not hold what was written.
        """
        for row, position in zip(self.owned[slot], range(len(packed.experts)), strict=True):
            for name, tensor in self.tensors.items():
                held, meant = tensor.row_view(row), packed.weights[name][position].to(tensor.tensor.device)
                if not torch.equal(held.view(torch.uint8), meant.contiguous().view(torch.uint8)):
                    raise IntegrityError(
                        "ROW_CONTENT",
                        f"{self.name}.{name} row {row}",
                        expected=f"the bytes of expert {packed.experts[position]}",
                        got="other bytes after the copy",
                        remedy="report this with the log; the adapter was not published",
                    )

    def publish(self, slot: int, packed: PackedLayer) -> None:
        """Make the placed rows of `slot` visible to the next step."""
        self.map.publish(slot, dict(zip(packed.experts, self.owned[slot], strict=True)))

    def remove(self, slot: int) -> None:
        """Withdraw `slot` from the map, unmap and free its rows. A slot without rows is left alone.

        Rows that the driver fails to unmap are lost to the slot all the same, and stay taken until a later load or
        removal has unmapped them.
        """
        self.map.withdraw(slot)
        rows = self.owned.pop(slot, None)
        if rows is not None:
            self._free(rows)

    def pages_bound(self, rows: int) -> int:
        """Most pages that any `rows` adapter rows of this layer can need, however they lie."""
        return sum(_pages_bound(tensor.row_bytes, self._page, self.rows, rows) for tensor in self.tensors.values())

    @property
    def reserved_bytes(self) -> int:
        """Address space of the tensors, in whole pages."""
        return sum(math.ceil(tensor.tensor.nbytes / self._page) * self._page for tensor in self.tensors.values())

    def check_integrity(self) -> None:
        """Check rows against map, allocator and mappings.

        Raises:
            IntegrityError: MAP_INCONSISTENT, or what the tensors' own checks find.
        """
        held = [row for rows in self.owned.values() for row in rows]
        stranded = [row for rows in self._stranded for row in rows]
        needed = {*range(self.num_experts), *held}
        for name, tensor in self.tensors.items():
            tensor.check_integrity()
            if tensor.mapped_rows - set(stranded) != needed:
                raise _inconsistent(f"{self.name}.{name}", sorted(needed), sorted(tensor.mapped_rows))
        taken = [*held, *stranded]
        if len(taken) != len(set(taken)) or len(taken) + self.rows.free != self.rows.count:
            raise _inconsistent(f"{self.name} rows", "each row with one owner", taken)
        for slot in range(self.map.slots + 1):
            reachable = list(self.map.rows_of(slot).values())
            if reachable and reachable != self.owned.get(slot):
                raise _inconsistent(f"{self.name} slot {slot}", self.owned.get(slot, []), reachable)

    def _move_in(self, port: MoELayerPort, pool: PagePool, rows: int) -> None:
        """Virtual tensors of `rows` rows whose first hold the weights of `port`, and the port bound to them."""
        weights = {name: weight.detach() for name, weight in port.weights().items()}
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

    def _free(self, rows: list[int]) -> None:
        """Unmap and release `rows`, in whichever tensors they are mapped, and those that could not be before."""
        waiting, self._stranded = [*self._stranded, rows], []
        for freed in waiting:
            try:
                for tensor in self.tensors.values():
                    tensor.unmap_rows(tensor.mapped_rows.intersection(freed))
            except DriverError as error:
                logger.error("%s: rows %s stay mapped, to be freed later: %s", self.name, freed, error)
                self._stranded.append(freed)
            else:
                self.rows.release(freed)


def _pages_bound(row_bytes: int, page: int, adapter: RowAllocator, rows: int) -> int:
    # the page at the end of the base rows is there already
    first, end = adapter.first * row_bytes, (adapter.first + adapter.count) * row_bytes
    span = math.ceil(end / page) - math.ceil(first / page)
    # rows start at multiples of the common divisor, at worst that far before the end of a page
    per_row = 1 + math.ceil((row_bytes - math.gcd(row_bytes, page)) / page)
    return min(rows * per_row, span)


def _inconsistent(thing: str, expected: object, got: object) -> IntegrityError:
    return IntegrityError("MAP_INCONSISTENT", thing, expected=str(expected), got=str(got))


def summary(layers: Mapping[int, ExpertLayer]) -> dict[str, int]:
    """Bytes over all layers: reserved address space, mapped pages, and what the live rows exactly need."""
    tensors = [tensor for layer in layers.values() for tensor in layer.tensors.values()]
    return {
        "reserved_bytes": sum(layer.reserved_bytes for layer in layers.values()),
        "mapped_bytes": sum(tensor.mapped_bytes for tensor in tensors),
        "exact_bytes": sum(len(tensor.mapped_rows) * tensor.row_bytes for tensor in tensors),
    }
