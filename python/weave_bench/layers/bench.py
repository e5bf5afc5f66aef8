"""What all measurements of layers share: the layers, the traffic, and how much is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from npu_weave.residency.footprint_budget import available_bytes
from weave_bench.layers.batch import Shape, Step, decode, make_step, prefill
from weave_bench.layers.engine_layers import ROW_BYTES, EngineLayers, WovenLayers, engine_process
from weave_bench.layers.pairing import ColdCaches, Way
from weave_bench.layers.traffic import EXPERTS, Traffic, rows_needed

ADAPTERS = 20
COPIES = 3
"""Of npu-weave's weights and of what they should equal, each in memory of its own: how much equal ones differ is the
noise."""
COMPARED = 5
"""Adapters in the comparison with padded tensors, whose rows have memory in every copy."""
MEMORY_LEFT = 3 << 30
"""Bytes that are left to everything else."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        layers: at most; fewer where memory does not suffice.
        pairs: of every comparison.
        adapters: numbers of them that share a step.
        decode: batch sizes.
        prefill: prompt tokens of a step.
        turns: of what is timed directly.
    """

    layers: int
    pairs: int
    adapters: tuple[int, ...]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    turns: int

    @property
    def shapes(self) -> list[Shape]:
        """Steps that are measured."""
        return [*map(decode, self.decode), *map(prefill, self.prefill)]


FULL = Scale(layers=2, pairs=60, adapters=(1, 5, 10, 20), decode=(1, 4, 16, 32), prefill=(128, 256), turns=30)
QUICK = Scale(layers=1, pairs=5, adapters=(1, 5, 20), decode=(1, 32), prefill=(128,), turns=5)


@dataclass(frozen=True)
class Bench:
    """Layers with and without npu-weave, base weights alike; all adapters are loaded, adapter i as revision i."""

    woven: WovenLayers
    plain: EngineLayers
    traffic: Traffic
    scale: Scale
    cold: ColdCaches

    def step(self, shape: Shape, adapters: int, seed: int) -> Step:
        """`make_step` of this bench's traffic."""
        return make_step(self.traffic, shape, adapters, seed)

    def with_adapters(self, step: Step, layers: int | None = None) -> Way:
        """`step` as it is, through npu-weave; through the first `layers` of them."""
        return Way(lambda: self.woven.set_step(step.revisions, step.tokens), lambda: self.woven.run(step, layers))

    def of_base(self, step: Step, layers: int | None = None) -> Way:
        """The same tokens, all of them the base model's, through npu-weave."""
        return Way(lambda: self.woven.set_step(step.of_base, step.tokens), lambda: self.woven.run(step, layers))

    def without_us(self, step: Step, layers: int | None = None) -> Way:
        """The same tokens through plain vLLM."""
        return Way(lambda: None, lambda: self.plain.run(step, layers))


@contextmanager
def open_bench(traffic: Traffic, scale: Scale, layers: int) -> Iterator[Bench]:
    """Make the layers and load all adapters; takes `memory_needed` bytes."""
    with engine_process() as scratch:
        rows = max(rows_needed(traffic.tenants))
        plain = EngineLayers(scratch, layers)
        woven = WovenLayers(scratch, layers, adapters=len(traffic.tenants), adapter_rows=rows)
        for number, tenant in enumerate(tqdm(traffic.tenants, desc="load adapters", leave=False), start=1):
            woven.load(number, tenant)
        yield Bench(woven, plain, traffic, scale, ColdCaches())


def memory_needed(layers: int, adapter_rows: int, compared_rows: int) -> int:
    """Bytes for `layers` layers with all adapters and the same without npu-weave, and for the copies of one layer.

    Args:
        layers: of either kind.
        adapter_rows: a layer, of all adapters.
        compared_rows: a layer, of those that are compared with padded tensors.
    """
    rows = layers * (EXPERTS + adapter_rows) + layers * EXPERTS
    copies = (2 * COPIES - 1) * (EXPERTS + compared_rows)  # virtual, but for the first, and padded
    return (rows + copies) * ROW_BYTES


def layers_that_fit(most: int, adapter_rows: int, compared_rows: int, available: int | None = None) -> int:
    """How many layers memory suffices for, at least one and at most `most`.

    Args:
        most: layers.
        adapter_rows, compared_rows: see `memory_needed`.
        available: bytes; None for what the system has now.
    """
    free = (available_bytes() if available is None else available) - MEMORY_LEFT
    rows = (adapter_rows, compared_rows)
    return max((layers for layers in range(1, most + 1) if memory_needed(layers, *rows) <= free), default=1)


def check_equal(ours: list[torch.Tensor], others: list[torch.Tensor], thing: str) -> None:
    """Times are compared only of equal answers.

    Raises:
        RuntimeError: a bit differs.
    """
    if not all(torch.equal(one, other) for one, other in zip(ours, others, strict=True)):
        raise RuntimeError(f"{thing}: answers differ, so times cannot be compared")
