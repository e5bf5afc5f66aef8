"""Random lives of a bank whose adapters share experts: in, out, revised, and calls of the driver that fail in between.

Contents come from a small pool, so that slots and revisions share rows all the time; some are bytes of base experts.
The model is one dictionary: for every slot, layer and expert, which content it should have. What the bank holds is
compared with it after every step, and a step that failed must have changed nothing at all.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.errors import CapacityError, DriverError, IntegrityError
from npu_weave.experts import bank
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.port import Routing
from npu_weave.memory import FaultDriver, HostDriver, PagePool

PAGE = 2 << 20
EXPERTS = 3
CONTENTS = (*(f"base {expert}" for expert in range(EXPERTS)), "p", "q", "r", "near base 0", "near r")
SHAPES: tuple[dict[str, tuple[int, ...]], ...] = (
    {"w13": (768, 512), "w2": (40, 512)},
    {"w13": (24, 512), "w2": (500, 512), "scale": ()},
)
"""Of one row, in two layers: from 3/256 to 3/8 of a page, so pages begin and end inside rows; and a number an expert,
as scales of quantised weights are."""
Experts = dict[int, str]
Tuned = tuple[Experts, Experts]
"""For each layer, expert -> content."""


@cache
def content(layer: int, what: str) -> dict[str, torch.Tensor]:
    """The bytes of a content; any bit pattern, NaN included. One bit makes it near another. Nothing writes to them."""
    if what.startswith("near "):
        found = {name: weight.clone() for name, weight in content(layer, what.removeprefix("near ")).items()}
        last = found[list(found)[-1]]
        last.view(-1)[-1:].view(torch.uint8)[-1] ^= 1
        return found
    generator = torch.Generator().manual_seed(1000 * layer + CONTENTS.index(what))
    return {
        name: torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16).view(torch.bfloat16)
        for name, shape in SHAPES[layer].items()
    }


def stacked(layer: int, contents: Sequence[str]) -> dict[str, torch.Tensor]:
    """Rows ``[len(contents), ...]`` by parameter name, in fresh memory."""
    return {name: torch.stack([content(layer, what)[name] for what in contents]) for name in SHAPES[layer]}


class Port:
    """`MoELayerPort` of a layer whose base expert `j` has the content ``base j``."""

    row_limit: None = None

    def __init__(self, index: int) -> None:
        self.index, self.name, self.num_experts = index, f"layers.{index}", EXPERTS
        self._weights = stacked(index, CONTENTS[:EXPERTS])

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self._weights

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        raise AssertionError("nothing is packed here")

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        self._weights[name] = tensor

    def insert_routing(self, routing: Routing) -> None:
        raise AssertionError("nothing is rerouted here")


def pack(tuned: Tuned, *, given: bool) -> PackedAdapter:
    """An adapter of these contents in fresh memory; digests given, or left to be computed."""
    layers = {
        layer: PackedLayer(
            tuple(sorted(experts)),
            stacked(layer, [experts[expert] for expert in sorted(experts)]),
            tuple(experts[expert] for expert in sorted(experts)) if given else None,
        )
        for layer, experts in enumerate(tuned)
        if experts
    }
    return PackedAdapter("adapter", "digest", layers)


EXPERT_CONTENTS = st.dictionaries(st.integers(0, EXPERTS - 1), st.sampled_from(CONTENTS), max_size=EXPERTS)
TUNED = st.tuples(EXPERT_CONTENTS, EXPERT_CONTENTS)
FAULTS = st.tuples(st.sampled_from(["create_page", "map", "fence", "copy"]), st.integers(1, 8))
SLOT = st.integers(1, 4)


class BadCopy(Exception):
    """A copy that failed."""


class FailingWeights(Mapping[str, Any]):
    """Weights whose n-th row from now on, in the order of reading, cannot be read; `reads` holds n, 0 for none."""

    def __init__(self, weights: Mapping[str, torch.Tensor], reads: list[int]) -> None:
        self._weights, self._reads = weights, reads

    def __getitem__(self, name: str) -> Any:
        outer = self

        class Rows:
            def __getitem__(self, position: int) -> torch.Tensor:
                outer._reads[0] -= 1
                if outer._reads[0] == 0:
                    raise BadCopy
                return outer._weights[name][position]

        return Rows()

    def __iter__(self) -> Any:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Sharing(RuleBasedStateMachine):
    """Slots of a bank against a dictionary."""

    @initialize(
        slots=st.integers(2, 4), rows=st.integers(2, 8), pages=st.none() | st.integers(3, 10),
        at_once=st.sampled_from([1, bank.SLICE_EXPERTS]),
    )  # fmt: skip
    def start(self, slots: int, rows: int, pages: int | None, at_once: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(bank, "SLICE_EXPERTS", at_once)
        self.driver = FaultDriver(HostDriver())
        self.slots, self.rows = slots, rows
        base = sum(len(self.pages_under(layer, set(range(EXPERTS)))) for layer in range(2))
        self.pool = PagePool(self.driver, None if pages is None else (base + pages) * PAGE)
        self.limited = pages is not None
        layers = [ExpertLayer(Port(index), self.pool, adapter_rows=rows, slots=slots) for index in range(2)]
        self.bank = ExpertBank(layers, self.pool, slots=slots)
        self.held: dict[int, Tuned] = {}
        self.adapters: dict[int, PackedAdapter] = {}

    def pages_under(self, layer: int, rows: set[int]) -> set[tuple[str, int]]:
        """Pages with bytes of these rows, found by their first and last bytes: no row is longer than a page."""
        found = set()
        for name, shape in SHAPES[layer].items():
            size = content(layer, "p")[name].nbytes
            assert size <= PAGE, shape
            found |= {(name, at // PAGE) for row in rows for at in (row * size, (row + 1) * size - 1)}
        return found

    def rows_needed(self, held: Mapping[int, Tuned], given: Mapping[int, bool], layer: int) -> int:
        """Adapter rows for these slots: a content needs as many as the slot that has it most often."""
        needed: Counter[tuple[bool, str]] = Counter()
        for slot, tuned in held.items():
            needed |= Counter((given[slot], what) for what in tuned[layer].values())
        return needed.total()

    def needed_with(self, slot: int, tuned: Tuned, given: bool) -> list[int]:
        ways = {**self.given, slot: given}
        return [self.rows_needed({**self.held, slot: tuned}, ways, layer) for layer in range(2)]

    @property
    def given(self) -> dict[int, bool]:
        """Slot -> whether its adapter came with digests; those without share among themselves only."""
        return {
            slot: all(layer.digests is not None for layer in adapter.layers.values())
            for slot, adapter in self.adapters.items()
        }

    def put(self, slot: int, tuned: Tuned, *, given: bool) -> bool:
        """Install, or see it refused for a good reason. Returns whether it is in."""
        adapter = pack(tuned, given=given)
        before = self.snapshot()
        fits = max(self.needed_with(slot, tuned, given)) <= self.rows
        try:
            self.bank.install(slot, adapter)
        except CapacityError as error:
            assert self.snapshot() == before
            assert (error.code == "MEMORY_EXHAUSTED" and self.limited) or not fits
            return False
        assert fits
        self.held[slot], self.adapters[slot] = tuned, adapter
        return True

    @rule(slot=SLOT, tuned=TUNED, given=st.booleans())
    def install(self, slot: int, tuned: Tuned, given: bool) -> None:
        if slot <= self.slots and slot not in self.held:
            self.put(slot, tuned, given=given)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.bank.remove(slot)
        self.forget(slot)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), changed=TUNED, beside=st.booleans())
    def revise(self, data: st.DataObject, changed: Tuned, beside: bool) -> None:
        """The next revision of an adapter: into a free slot beside the old one, or into the old one's place."""
        slot = data.draw(st.sampled_from(sorted(self.held)))
        old, given = self.held[slot], self.given[slot]
        tuned = ({**old[0], **changed[0]}, {**old[1], **changed[1]})
        if beside:
            slot = next((free for free in range(1, self.slots + 1) if free not in self.held), 0)
        else:
            self.bank.remove(slot)
            self.forget(slot)
        if slot:
            self.put(slot, tuned, given=given)

    @rule(slot=SLOT, tuned=TUNED, given=st.booleans(), fault=FAULTS)
    def fail_to_install(self, slot: int, tuned: Tuned, given: bool, fault: tuple[str, int]) -> None:
        if slot > self.slots or slot in self.held:
            return
        adapter = pack(tuned, given=given)
        before = self.snapshot()
        if fault[0] == "copy":
            failing = failing_to_copy(adapter, fault[1])
        else:
            failing = adapter
            self.driver.arm(fault)
        try:
            self.bank.install(slot, failing)
        except (DriverError, CapacityError, BadCopy):
            self.driver.arm(None)
            assert self.snapshot() == before
        else:
            self.driver.arm(None)
            self.held[slot], self.adapters[slot] = tuned, adapter

    @rule(slot=SLOT, tuned=TUNED, copies=st.integers(0, 20), fault=st.none() | FAULTS, data=st.data())
    def prepare(self, slot: int, tuned: Tuned, copies: int, fault: tuple[str, int] | None, data: st.DataObject) -> None:
        """Install bit by bit, and give up on the way, or with a fault, or after another slot has been emptied."""
        if slot > self.slots or slot in self.held:
            return
        adapter = pack(tuned, given=data.draw(st.booleans()))
        before = self.snapshot()
        self.driver.arm(None if fault is None or fault[0] == "copy" else fault)
        install = self.bank.prepare(slot, adapter)
        unfinished = True
        try:
            while unfinished and copies:
                unfinished, copies = install.lease_next() or install.copy_next(), copies - 1
        except (DriverError, CapacityError):
            self.driver.arm(None)
            assert install.ended and self.snapshot() == before
            return
        self.bank.check_integrity(self.adapters)
        others = sorted(self.held)
        emptied = data.draw(st.sampled_from([0, *others]))
        if emptied:
            self.driver.arm(None)
            self.bank.remove(emptied)
            self.forget(emptied)
        try:
            install.publish()
        except (DriverError, IntegrityError) as error:
            assert unfinished or error.code == "DRIVER_FAULT_INJECTED"
            self.driver.arm(None)
            install.abort()
            assert emptied or self.snapshot() == before
        else:
            self.driver.arm(None)
            self.held[slot], self.adapters[slot] = tuned, adapter

    @precondition(lambda self: self.held)
    @rule(data=st.data(), call=st.sampled_from(["fence", "unmap", "destroy_page"]), n=st.integers(1, 6))
    def fail_to_remove(self, data: st.DataObject, call: str, n: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        before = self.snapshot()
        self.driver.arm((call, n))
        try:
            self.bank.remove(slot)
        except DriverError:
            self.driver.arm(None)
            assert (call, n) == ("fence", 1) and self.snapshot() == before
        else:
            self.driver.arm(None)
            self.forget(slot)
        # what stayed mapped is accounted for, and freed as the next load or removal would
        self.bank.check_integrity(self.adapters)
        for layer in self.bank.layers.values():
            layer.free()

    @rule(known=st.lists(TUNED, min_size=1, max_size=5), given=st.booleans())
    def admit(self, known: list[Tuned], given: bool) -> None:
        """Whatever is admitted fits, whichever of it come together."""
        try:
            self.bank.check_fits([pack(tuned, given=given) for tuned in known], "adapters")
        except CapacityError as error:
            assert (error.code == "MEMORY_EXHAUSTED" and self.limited) or error.code == "ROWS_EXHAUSTED"
            return
        for chosen in combinations(known, min(self.slots, len(known))):
            held = dict(enumerate(chosen, 1))
            for layer in range(2):
                assert self.rows_needed(held, dict.fromkeys(held, given), layer) <= self.rows

    def forget(self, slot: int) -> None:
        del self.held[slot], self.adapters[slot]

    def snapshot(self) -> tuple[Any, ...]:
        """Everything there is to see, private parts and the bytes of every mapped row included."""
        layers = self.bank.layers.values()
        return (
            self.driver.stats(),
            self.bank.memory(),
            (self.pool.in_use, self.pool.idle, set(self.bank._used)),
            [(layer.rows.free_rows, layer.users.counts, dict(layer.users._row_of)) for layer in layers],
            [(dict(layer.owned), list(layer._leaving), layer.map.table.tolist()) for layer in layers],
            [[layer.map.rows_of(slot) for slot in range(self.slots + 1)] for layer in layers],
            [
                (tensor.name, row, hashlib.blake2b(raw(tensor.row_view(row)).numpy().tobytes()).digest())
                for layer in layers
                for tensor in layer.tensors.values()
                for row in sorted(tensor.mapped_rows)
            ],
        )

    @invariant()
    def every_expert_of_every_slot_is_served_its_content(self) -> None:
        if not hasattr(self, "bank"):
            return
        ids = torch.arange(EXPERTS, dtype=torch.int32).view(1, EXPERTS)
        for index, layer in self.bank.layers.items():
            for slot in range(self.slots + 1):
                tuned = self.held[slot][index] if slot in self.held else {}
                token_slots = torch.tensor([slot], dtype=torch.int32)
                rows = torch.ops.npu_weave.reroute(ids, token_slots, layer.map.table)[0].tolist()
                assert len(set(rows)) == EXPERTS, "a token's experts stay distinct"
                for expert, row in enumerate(rows):
                    meant = tuned.get(expert, f"base {expert}")
                    assert (row == expert) == (expert not in tuned), (index, slot, expert)
                    for name, weight in content(index, meant).items():
                        assert torch.equal(raw(layer.tensors[name].tensor[row]), raw(weight)), (index, slot, expert)

    @invariant()
    def rows_pages_and_counts_are_what_the_slots_need(self) -> None:
        if not hasattr(self, "bank"):
            return
        self.bank.check_integrity()
        pages = saved = 0
        for index, layer in self.bank.layers.items():
            mapped = set(layer.tensors["w2"].mapped_rows)
            needed = self.rows_needed(self.held, self.given, index)
            assert len(mapped) == EXPERTS + needed and needed + layer.rows.free == self.rows
            pages += len(self.pages_under(index, mapped))
            saved += sum(len(tuned[index]) for tuned in self.held.values()) - needed
        stats = self.driver.stats()
        assert self.pool.in_use == stats.mapped_pages == pages
        assert self.bank.memory()["saved_rows"] == saved

    def teardown(self) -> None:
        if not hasattr(self, "bank"):
            return
        for slot in sorted(self.held):
            self.bank.remove(slot)
        assert self.pool.in_use == self.bank.base_pages, "all that adapters took has come back"
        for layer in self.bank.layers.values():
            for tensor in layer.tensors.values():
                tensor.close()
        self.patch.undo()
        assert self.driver.stats().pages == self.pool.idle


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, which compare NaN as any other pattern."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def failing_to_copy(adapter: PackedAdapter, n: int) -> PackedAdapter:
    """The same adapter, whose n-th row to be copied cannot be."""
    reads = [0]
    layers = {
        index: PackedLayer(layer.experts, FailingWeights(layer.weights, reads), layer.content_digests)
        for index, layer in adapter.layers.items()
    }
    reads[0] = n
    return PackedAdapter(adapter.name, adapter.digest, layers)


# WEAVE_PROPERTY_EXAMPLES=10000 for the long run.
Sharing.TestCase.settings = settings(
    max_examples=int(os.environ.get("WEAVE_PROPERTY_EXAMPLES", "20")), stateful_step_count=20, deadline=None
)
TestSharing = Sharing.TestCase
