"""Physical memory under a model's experts, measured: base and adapters mapped for real, counted, given back.

The rows go through the same `ExpertLayer` and `ExpertBank` that serve an engine; only the engine is missing, so the
weights are constants. What a row holds does not change what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.progress import Progress, silent
from npu_weave.errors import IntegrityError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.port import Routing
from npu_weave.memory.driver import DriverStats
from npu_weave.memory.host import HostDriver
from npu_weave.memory.pool import PagePool
from npu_weave.memory.process import process_shmem_bytes
from npu_weave.residency.footprint_budget import available_bytes, choose_layers
from npu_weave.residency.footprint_formula import ExpertSets, Need, need, row_shapes
from npu_weave.residency.footprint_source import FootprintSource


@dataclass(frozen=True)
class Reading:
    """Physical memory at one moment, in bytes.

    Attributes:
        driver_bytes: pages mapped, as the driver counts them.
        shmem_bytes: growth of the process's ``RssShmem`` since before the measurement.
        exact_bytes: of the mapped rows alone.
    """

    driver_bytes: int
    shmem_bytes: int
    exact_bytes: int

    @property
    def waste(self) -> float:
        """What the driver counts beyond the exact need, as a share of that."""
        return self.driver_bytes / self.exact_bytes - 1


@dataclass(frozen=True)
class Step:
    """The state with `adapters` adapters loaded, `added` the last of them.

    Attributes:
        reading: of the measured layers.
        measured: what these layers need, by arithmetic.
        full: what all MoE layers need, by arithmetic.
    """

    adapters: int
    added: str | None
    reading: Reading
    measured: Need
    full: Need


@dataclass(frozen=True)
class Footprint:
    """A finished measurement.

    Attributes:
        source: what was measured.
        layers: the layers that were.
        reserved_bytes: address space of the measured layers, `M + N * e_max` rows each, in whole pages.
        steps: with 0, 1, ... N adapters.
        unloaded: after all adapters were removed again, the base model still there.
        closed: the driver's count at the very end: no page, no reservation.
        closed_shmem_bytes: ``RssShmem`` at the very end, against before.
    """

    source: FootprintSource
    layers: tuple[int, ...]
    reserved_bytes: int
    steps: tuple[Step, ...]
    unloaded: Reading
    closed: DriverStats
    closed_shmem_bytes: int


def measure_footprint(source: FootprintSource, *, layers: int | None = None, progress: Progress = silent) -> Footprint:
    """Maps the base experts, then one adapter after the other, and reads driver and system after each.

    Args:
        source: what to measure.
        layers: MoE layers to build, from the first; None: as many as fit in a third of the available memory.
        progress: told the bytes mapped so far.

    Raises:
        ConfigError, CapacityError: see `choose_layers`.
        IntegrityError: MEMORY_NOT_RETURNED, pages or address space are left at the end.
    """
    sets = [experts for _, experts in source.adapters]
    available = available_bytes()
    driver = HostDriver(limit_bytes=max(1, available))
    chosen = choose_layers(source.geometry, sets, driver.granularity, asked=layers, available=available)
    before = process_shmem_bytes()
    total = need(source.geometry, chosen, sets, source.e_max, driver.granularity).paged_bytes
    bank = ExpertBank([], PagePool(driver), slots=len(sets))

    def reading() -> Reading:
        mapped = driver.stats().mapped_bytes
        progress("measure", mapped, total)
        return Reading(mapped, process_shmem_bytes() - before, bank.memory()["exact_bytes"])

    try:
        for index in chosen:
            bank.layers[index] = _base_layer(source, index, bank)
            progress("measure", driver.stats().mapped_bytes, total)
        bank.base_pages = bank.pool.in_use
        steps = [_step(source, chosen, 0, reading(), driver.granularity)]
        for slot, (name, experts) in enumerate(source.adapters, 1):
            bank.install(slot, _packed(source.geometry, chosen, name, experts, fill=slot + 1))
            steps.append(_step(source, chosen, slot, reading(), driver.granularity))
        bank.check_integrity()
        reserved = driver.stats().reserved_bytes
        for slot in range(1, len(sets) + 1):
            bank.remove(slot)
        unloaded = reading()
    finally:
        _close(bank)
    closed = driver.stats()
    if closed.pages or closed.mapped_pages or closed.reservations:
        raise IntegrityError("MEMORY_NOT_RETURNED", "memory measurement", expected="nothing left", got=str(closed))
    return Footprint(source, chosen, reserved, tuple(steps), unloaded, closed, process_shmem_bytes() - before)


class _BareLayer:
    """`MoELayerPort` of a layer that no engine runs: its weights have a shape and one value, and no memory."""

    row_limit: None = None

    def __init__(self, index: int, geometry: MoEGeometry) -> None:
        self.index = index
        self.name = f"layer {index}"
        self.num_experts = geometry.num_experts
        self._geometry = geometry

    def weights(self) -> Mapping[str, torch.Tensor]:
        """See `MoELayerPort.weights`."""
        return _constant(self._geometry, self.num_experts, fill=1)

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """See `MoELayerPort.pack`; nothing to pack here."""
        raise NotImplementedError("a layer without an engine packs nothing")

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """See `MoELayerPort.rebind`; no parameter to change."""

    def insert_routing(self, routing: Routing) -> None:
        """See `MoELayerPort.insert_routing`; nothing is routed here."""


def _constant(geometry: MoEGeometry, experts: int, *, fill: float) -> dict[str, torch.Tensor]:
    """Weights ``[experts, ...]`` of one value, one element of memory each."""
    value = torch.tensor(fill, dtype=geometry.dtype)
    return {name: value.expand(experts, *shape) for name, shape in row_shapes(geometry).items()}


def _base_layer(source: FootprintSource, index: int, bank: ExpertBank) -> ExpertLayer:
    rows = bank.slots * source.e_max
    return ExpertLayer(_BareLayer(index, source.geometry), bank.pool, adapter_rows=rows, slots=bank.slots)


def _packed(
    geometry: MoEGeometry, layers: Sequence[int], name: str, experts: ExpertSets, *, fill: float
) -> PackedAdapter:
    packed = {
        layer: PackedLayer(
            experts[layer],
            _constant(geometry, len(experts[layer]), fill=fill),
            tuple(f"{name}, layer {layer}, expert {expert}" for expert in experts[layer]),  # no two share a row
        )
        for layer in layers
        if experts.get(layer)
    }
    return PackedAdapter(name, "", packed)


def _step(source: FootprintSource, layers: Sequence[int], loaded: int, reading: Reading, page_bytes: int) -> Step:
    sets = [experts for _, experts in source.adapters[:loaded]]
    return Step(
        adapters=loaded,
        added=source.adapters[loaded - 1][0] if loaded else None,
        reading=reading,
        measured=need(source.geometry, layers, sets, source.e_max, page_bytes),
        full=need(source.geometry, source.geometry.moe_layers, sets, source.e_max, page_bytes),
    )


def _close(bank: ExpertBank) -> None:
    for layer in bank.layers.values():
        for tensor in layer.tensors.values():
            tensor.close()
    bank.layers.clear()
