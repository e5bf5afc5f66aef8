"""An MoE layer without an engine, and adapters for it: what loads are measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.port import Routing
from npu_weave.memory import Driver, PagePool


@dataclass(frozen=True)
class Geometry:
    """Sizes of MoE layers: bfloat16 weights, gate and up stacked ``[2 width, hidden]``, down ``[hidden, width]``."""

    layers: int
    experts: int
    hidden: int
    width: int

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return 3 * self.hidden * self.width * 2

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of one row of each weight."""
        return {"w13": (2 * self.width, self.hidden), "w2": (self.hidden, self.width)}


class PlainLayer:
    """`MoELayerPort` over the tensors it is given."""

    row_limit: None = None

    def __init__(self, index: int, geometry: Geometry) -> None:
        self.index = index
        self.name = f"layer {index}"
        self.num_experts = geometry.experts
        zero = torch.zeros((), dtype=torch.bfloat16)
        self.parameters = {name: zero.expand(geometry.experts, *shape) for name, shape in geometry.shapes().items()}

    def weights(self) -> Mapping[str, torch.Tensor]:
        """See `MoELayerPort.weights`."""
        return self.parameters

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """See `MoELayerPort.pack`."""
        width, hidden = experts[0].gate.shape
        w13 = fresh_tensor((len(experts), 2 * width, hidden), experts[0].gate.dtype)
        w2 = fresh_tensor((len(experts), hidden, width), experts[0].down.dtype)
        for position, expert in enumerate(experts):
            w13[position, :width].copy_(expert.gate)
            w13[position, width:].copy_(expert.up)
            w2[position].copy_(expert.down)
        return {"w13": w13, "w2": w2}

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """See `MoELayerPort.rebind`."""
        self.parameters[name] = tensor

    def insert_routing(self, routing: Routing) -> None:
        """See `MoELayerPort.insert_routing`; nothing is routed here."""


def plain_bank(driver: Driver, geometry: Geometry, *, slots: int, rows: int, verify: bool = True) -> ExpertBank:
    """Base experts of zeros in virtual tensors, with `rows` rows for adapters in every layer."""
    pool = PagePool(driver)
    layers = [
        ExpertLayer(PlainLayer(index, geometry), pool, adapter_rows=rows, slots=slots)
        for index in range(geometry.layers)
    ]
    return ExpertBank(layers, pool, slots=slots, verify=verify)


def random_adapter(name: str, geometry: Geometry, experts: Mapping[int, Sequence[int]], seed: int) -> PackedAdapter:
    """An adapter that tunes `experts` (layer -> ids) with random bits."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer, ids in experts.items():
        weights = {
            key: torch.randint(-(2**15), 2**15, (len(ids), *shape), generator=generator, dtype=torch.int16)
            for key, shape in geometry.shapes().items()
        }
        layers[layer] = PackedLayer(tuple(ids), {key: bits.view(torch.bfloat16) for key, bits in weights.items()})
    return PackedAdapter(name, f"{name} {seed}", layers)


def close(bank: ExpertBank) -> None:
    """Give back all memory and address space; the bank is of no use any more."""
    for layer in bank.layers.values():
        for tensor in layer.tensors.values():
            tensor.close()
