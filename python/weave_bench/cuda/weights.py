"""A layer's experts four ways, with the same values: virtual, padded, the base model's alone, a merged model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.memory import Driver, PagePool
from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.step import ExpertWeights
from weave_bench.plain_layer import PlainLayer, close

SPARE_ROWS = 13
"""Rows reserved an adapter: the most experts that any published one tunes (E_max)."""


class DeviceLayer(PlainLayer):
    """A rank's share of a layer, whose base experts are one zero on the device, seen from everywhere."""

    def __init__(self, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(0, shape.rows)
        self.num_experts = shape.experts
        zero = torch.zeros((), dtype=dtype, device=device)
        self.parameters = {name: zero.expand(shape.share, *size) for name, size in shape.rows.shapes().items()}


@dataclass
class Experts:
    """The same experts in several tensors, and the bank that holds the virtual ones. To be closed.

    Attributes:
        virtual: rows in npu_weave's virtual tensors, all adapters loaded; `SPARE_ROWS` rows an adapter are reserved,
            those with experts have memory.
        padded: ordinary tensors with memory under every row of these, the same map.
        base: the base model's experts alone, in ordinary tensors.
        merged: the same with the first adapter's in their places, as a merged checkpoint has them.
    """

    bank: ExpertBank
    virtual: ExpertWeights
    padded: ExpertWeights
    base: ExpertWeights
    merged: ExpertWeights

    @property
    def mapped_rows(self) -> int:
        """Rows of the virtual tensor that have memory."""
        return len(self.bank.layers[0].tensors["w13"].mapped_rows)

    def close(self) -> None:
        """Gives all memory back; the tensors are of no use any more."""
        close(self.bank)


def rows_needed(shape: LayerShape, tuned: Sequence[Sequence[int]]) -> int:
    """Rows with memory that `make_experts` takes, in all of its tensors together."""
    padded = shape.share + SPARE_ROWS * len(tuned)
    return shape.share + sum(map(len, tuned)) + padded + 2 * shape.share


def make_experts(
    shape: LayerShape,
    tuned: Sequence[Sequence[int]],
    driver: Driver,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Experts:
    """Random experts for the base model and for an adapter in every slot, 1 the first.

    Args:
        tuned: for each adapter the experts that it tunes, all on this rank.
        driver: of the virtual tensors' memory.
        device: where that is, and the ordinary tensors'.

    Raises DriverError, CapacityError or torch.OutOfMemoryError when memory does not suffice.
    """
    pool = PagePool(driver)
    layer = ExpertLayer(
        DeviceLayer(shape, dtype, device),
        pool,
        adapter_rows=SPARE_ROWS * len(tuned),
        slots=len(tuned),
        placement=shape.placement,
    )
    bank = ExpertBank([layer], pool, slots=len(tuned), verify=False)  # content is made on the device, see `_fill`
    for slot, ids in enumerate(tqdm(tuned, desc=f"{shape.name}: adapters", leave=False, disable=None), 1):
        bank.install(slot, _blank_adapter(slot, tuple(ids), shape, dtype, device))
    _fill(layer)
    virtual = ExpertWeights(layer.tensors["w13"].tensor, layer.tensors["w2"].tensor, layer.map.table)
    return Experts(bank, virtual, _padded(layer, virtual), _merged(layer, shape, 0), _merged(layer, shape, 1))


def _blank_adapter(
    slot: int, ids: tuple[int, ...], shape: LayerShape, dtype: torch.dtype, device: torch.device
) -> PackedAdapter:
    """An adapter of zeros that says it is unlike all others, so that it gets rows of its own."""
    zero = torch.zeros((), dtype=dtype, device=device)
    weights = {name: zero.expand(len(ids), *size) for name, size in shape.rows.shapes().items()}
    digests = tuple(f"adapter {slot} expert {expert}" for expert in ids)
    return PackedAdapter(f"adapter {slot}", f"adapter {slot}", {0: PackedLayer(ids, weights, digests)})


def _fill(layer: ExpertLayer) -> None:
    """Random values in all rows that have memory, so large that outputs are about as large as inputs."""
    for name, tensor in layer.tensors.items():
        generator = torch.Generator(tensor.tensor.device).manual_seed(len(name))
        for row in sorted(tensor.mapped_rows):
            view = tensor.row_view(row)
            view.normal_(std=view.shape[1] ** -0.5, generator=generator)


def _padded(layer: ExpertLayer, virtual: ExpertWeights) -> ExpertWeights:
    copies = []
    for name, held in zip(("w13", "w2"), virtual, strict=False):
        copy = torch.zeros(held.shape, dtype=held.dtype, device=held.device)
        for row in layer.tensors[name].mapped_rows:
            copy[row].copy_(layer.tensors[name].row_view(row))
        copies.append(copy)
    return ExpertWeights(copies[0], copies[1], virtual.expert_map)


def _merged(layer: ExpertLayer, shape: LayerShape, slot: int) -> ExpertWeights:
    """An ordinary tensor of this rank's experts as `slot` has them; every slot of its map is that one."""
    rows = layer.map.table[slot, : shape.share].tolist()
    w13, w2 = (torch.stack([layer.tensors[name].row_view(row) for row in rows]) for name in ("w13", "w2"))
    number = torch.arange(shape.experts, dtype=torch.int32, device=w13.device)
    expert_map = number.repeat(len(layer.map.table), 1)
    return ExpertWeights(w13, w2, expert_map)
