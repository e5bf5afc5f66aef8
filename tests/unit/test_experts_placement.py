"""Experts spread over ranks: every rank keeps the same map, and memory only for what lies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    EXPERTS,
    LAYERS,
    PAGE,
    SHAPES,
    PlainLayer,
    base_weights,
    bits,
    no_bank_outlives_its_test,
    open_banks,
    pages_under,
    random_bits,
)

from npu_weave.errors import CapacityError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.memory import HostDriver, PagePool

RANKS, SLOTS, ADAPTER_ROWS = 2, 2, 3
SHARE = EXPERTS // RANKS
ROWS = SHARE + ADAPTER_ROWS
BASE_PAGES = sum(len(pages_under(range(SHARE), name)) for name in SHAPES)


class RankLayer(PlainLayer):
    """A layer with the base experts of one rank."""

    def __init__(self, index: int, rank: int) -> None:
        super().__init__(index)
        self.parameters = {
            name: weight[rank * SHARE : (rank + 1) * SHARE].clone() for name, weight in base_weights(index).items()
        }


Tuned = Mapping[int, Mapping[int, int]]
"""Layer -> expert -> seed of its content."""


def content(layer: int, seed: int) -> dict[str, torch.Tensor]:
    return {name: random_bits(shape, 7919 * seed + 10 * layer + n) for n, (name, shape) in enumerate(SHAPES.items())}


def packed_for(rank: int, name: str, tuned: Tuned) -> PackedAdapter:
    layers = {}
    for layer, experts in tuned.items():
        ids = sorted(experts)
        held = tuple(expert for expert in ids if expert // SHARE == rank)
        weights = {
            parameter: torch.stack([content(layer, experts[expert])[parameter] for expert in held])
            for parameter in (SHAPES if held else ())
        }
        layers[layer] = PackedLayer(tuple(ids), weights, tuple(str(experts[expert]) for expert in ids), held)
    return PackedAdapter(name, name, layers)


def make_ranks(adapter_pages: int | None = None) -> list[ExpertBank]:
    banks = []
    for rank in range(RANKS):
        limit = None if adapter_pages is None else (LAYERS * BASE_PAGES + adapter_pages) * PAGE
        pool = PagePool(HostDriver(), limit)
        layers = [
            ExpertLayer(
                RankLayer(index, rank),
                pool,
                adapter_rows=ADAPTER_ROWS,
                slots=SLOTS,
                placement=ExpertPlacement(RANKS, rank),
            )
            for index in range(LAYERS)
        ]
        banks.append(ExpertBank(layers, pool, slots=SLOTS))
    open_banks(banks)
    return banks


def install(banks: Sequence[ExpertBank], slot: int, tuned: Tuned) -> None:
    for rank, bank in enumerate(banks):
        bank.install(slot, packed_for(rank, f"adapter {slot}", tuned))


def check_served(banks: Sequence[ExpertBank], slots: Mapping[int, Tuned]) -> None:
    """Every slot reaches, on the rank of the base expert, the bytes of its adapter or of the base."""
    for layer in range(LAYERS):
        tables = [bank.layers[layer].map.table.tolist() for bank in banks]
        assert tables[0] == tables[1], "ranks send tokens to different rows"
        for slot, line in enumerate(tables[0]):
            tuned = slots.get(slot, {}).get(layer, {})
            for expert, row in enumerate(line):
                rank, place = divmod(row, ROWS)
                assert rank == expert // SHARE, "an expert on another rank than its base expert"
                meant = (
                    content(layer, tuned[expert])
                    if expert in tuned
                    else {name: weight[expert] for name, weight in base_weights(layer).items()}
                )
                for name, tensor in banks[rank].layers[layer].tensors.items():
                    assert tensor.tensor.shape == (ROWS, *SHAPES[name])
                    assert torch.equal(bits(tensor.row_view(place)), bits(meant[name])), (layer, slot, expert, name)
    for bank in banks:
        bank.check_integrity()


def mapped(banks: Sequence[ExpertBank]) -> list[list[int]]:
    """For each rank and layer, how many adapter rows have memory."""
    return [[len(layer.tensors["w2"].mapped_rows) - SHARE for layer in bank.layers.values()] for bank in banks]


def test_rows_are_numbered_through_the_ranks() -> None:
    placement = ExpertPlacement(ranks=4, rank=2)
    assert placement.base_rows(8, rows_per_rank=10).tolist() == [0, 1, 10, 11, 20, 21, 30, 31]
    assert placement.held([0, 3, 4, 5, 7], 8) == (4, 5)
    assert ExpertPlacement().base_rows(5, rows_per_rank=9).tolist() == [0, 1, 2, 3, 4]


def test_every_slot_serves_the_same_on_all_ranks() -> None:
    banks = make_ranks()
    check_served(banks, {})
    one: Tuned = {0: {0: 1, 1: 2, 3: 3}, 1: {2: 4, 3: 5}}
    two: Tuned = {0: {2: 6}, 1: {0: 7, 1: 8}}
    install(banks, 1, one)
    check_served(banks, {1: one})
    install(banks, 2, two)
    check_served(banks, {1: one, 2: two})
    assert mapped(banks) == [[2, 2], [2, 2]]
    for bank in banks:
        bank.remove(1)
    check_served(banks, {2: two})
    assert mapped(banks) == [[0, 2], [1, 0]]
    install(banks, 1, one)
    check_served(banks, {1: one, 2: two})


def test_equal_content_shares_a_row_on_one_rank_only() -> None:
    banks = make_ranks()
    one: Tuned = {0: {0: 1}}
    install(banks, 1, one)
    elsewhere: Tuned = {0: {2: 1}}
    install(banks, 2, elsewhere)
    assert mapped(banks) == [[1, 0], [1, 0]], "rank 1 has no such row yet"
    check_served(banks, {1: one, 2: elsewhere})
    for bank in banks:
        bank.remove(2)
    here: Tuned = {0: {1: 1}}
    install(banks, 2, here)
    assert mapped(banks) == [[1, 0], [0, 0]], "slot 2 uses slot 1's row"
    check_served(banks, {1: one, 2: here})
    assert [bank.memory()["saved_rows"] for bank in banks] == [1, 0]


def test_rows_are_counted_by_rank() -> None:
    """More experts than one rank has rows, but not on one rank."""
    banks = make_ranks()
    every: Tuned = {0: {expert: expert for expert in range(EXPERTS)}}
    for rank, bank in enumerate(banks):
        bank.check_fits([packed_for(rank, "every", every)], "x")
    install(banks, 1, every)
    check_served(banks, {1: every})


def test_a_full_rank_refuses_on_every_rank_and_nothing_changes() -> None:
    banks = make_ranks()
    first: Tuned = {0: {0: 1, 1: 2}}
    install(banks, 1, first)
    too_many: Tuned = {0: {0: 3, 1: 4, 2: 5}}
    for rank, bank in enumerate(banks):
        adapter = packed_for(rank, "too many", too_many)
        for attempt in (bank.check_fits, lambda adapters, _, bank=bank: bank.install(2, adapters[-1])):
            with pytest.raises(CapacityError) as refused:
                attempt([packed_for(rank, "first", first), adapter], "x")
            assert refused.value.code == "ROWS_EXHAUSTED"
    check_served(banks, {1: first})
    assert mapped(banks) == [[2, 0], [0, 0]]


def test_memory_is_admitted_by_the_fullest_rank() -> None:
    """Rank 1 would have room; it refuses all the same, as rank 0 must."""
    banks = make_ranks(adapter_pages=4)
    heavy: Tuned = {0: {0: 1, 1: 2}, 1: {0: 3, 1: 4}}
    for rank, bank in enumerate(banks):
        bank.check_fits([packed_for(rank, "light", {0: {0: 1}})], "x")
        with pytest.raises(CapacityError) as refused:
            bank.check_fits([packed_for(rank, "heavy", heavy)], "x")
        assert refused.value.code == "MEMORY_EXHAUSTED"
