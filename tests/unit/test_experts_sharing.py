"""Experts with equal content share a row: across adapters, across revisions, with the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    EXPERTS,
    SHAPES,
    PlainLayer,
    base_weights,
    check_served,
    make_bank,
    no_bank_outlives_its_test,
    packed,
    pages_of_live_rows,
    random_bits,
)

from npu_weave.errors import CapacityError, IntegrityError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter, PackedLayer

ROW = sum(2 * rows * columns for rows, columns in SHAPES.values())


def layer_of(contents: Mapping[int, int], digests: tuple[str, ...] | None = None) -> PackedLayer:
    """Expert -> number of its content; equal numbers are equal bytes, in other memory."""
    weights = {
        name: torch.stack([random_bits(shape, seed=77_000 + 10 * contents[expert] + number) for expert in contents])
        for number, (name, shape) in enumerate(SHAPES.items())
    }
    return PackedLayer(tuple(contents), weights, digests)


def adapter_of(first: Mapping[int, int], second: Mapping[int, int] | None = None) -> PackedAdapter:
    layers = {index: layer_of(contents) for index, contents in enumerate((first, second or {})) if contents}
    return PackedAdapter("adapter", "digest", layers)


def rows(bank: ExpertBank, layer: int = 0) -> int:
    """Adapter rows that are mapped."""
    return len(bank.layers[layer].tensors["w2"].mapped_rows) - EXPERTS


def check(bank: ExpertBank, slots: Mapping[int, PackedAdapter]) -> None:
    bank.check_integrity(slots)
    check_served(bank, slots)
    assert bank.pool.in_use == pages_of_live_rows(bank)


def test_the_same_adapter_in_two_slots_costs_one() -> None:
    bank = make_bank()
    first, second = packed({0: [0, 3], 1: [2]}, 1), packed({0: [0, 3], 1: [2]}, 1)
    bank.install(1, first)
    before = bank.memory()
    bank.install(2, second)
    after = bank.memory()
    saved = {"shared_rows": 3, "saved_rows": 3, "saved_bytes": 3 * ROW}
    assert after == {**before, **saved}
    check(bank, {1: first, 2: second})
    bank.remove(1)
    assert bank.memory() == before
    check(bank, {2: second})
    bank.remove(2)
    assert bank.pool.in_use == bank.base_pages
    check(bank, {})


def test_a_revision_costs_what_it_changes() -> None:
    bank = make_bank(adapter_rows=4)
    old, new = adapter_of({0: 1, 1: 2, 2: 3}, {3: 1}), adapter_of({0: 1, 1: 9, 2: 3}, {3: 1})
    bank.check_fits([old, new], "x")
    bank.install(1, old)
    bank.install(2, new)
    assert (rows(bank, 0), rows(bank, 1)) == (4, 1)
    check(bank, {1: old, 2: new})
    bank.remove(1)
    assert (rows(bank, 0), rows(bank, 1)) == (3, 1)
    check(bank, {2: new})
    # the old revision comes back for one row
    bank.install(1, old)
    assert rows(bank, 0) == 4
    check(bank, {1: old, 2: new})


def test_content_counts_and_not_the_expert_it_replaces() -> None:
    bank = make_bank()
    first, second = adapter_of({0: 5, 2: 6}), adapter_of({1: 6, 3: 5})
    bank.install(1, first)
    bank.install(2, second)
    assert rows(bank) == 2
    check(bank, {1: first, 2: second})


def test_layers_do_not_share_with_each_other() -> None:
    bank = make_bank()
    adapter = adapter_of({0: 5}, {0: 5})
    bank.install(1, adapter)
    assert (rows(bank, 0), rows(bank, 1)) == (1, 1)
    check(bank, {1: adapter})


def test_equal_experts_of_one_adapter_keep_a_row_each() -> None:
    """A token's top-k experts are distinct, and stay so after rerouting."""
    bank = make_bank()
    twins, one = adapter_of({0: 5, 1: 5, 3: 5}), adapter_of({2: 5})
    bank.install(1, twins)
    bank.install(2, one)
    assert rows(bank) == 3
    check(bank, {1: twins, 2: one})
    bank.remove(1)
    assert rows(bank) == 1
    check(bank, {2: one})


def test_nothing_is_installed_beside_rows_that_are_not_written_yet() -> None:
    """It could share them."""
    bank = make_bank()
    first, second = packed({0: [0]}, 1), packed({0: [1]}, 2)
    install = bank.prepare(1, first)
    for begin in (bank.install, bank.prepare):
        with pytest.raises(IntegrityError, match="SLOT_STATE"):
            begin(2, second)
    while install.lease_next() or install.copy_next():
        pass
    install.publish()
    bank.install(2, second)
    check(bank, {1: first, 2: second})


class Untouchable(Mapping[str, torch.Tensor]):
    """Weights that nobody may read."""

    def __getitem__(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    def __iter__(self) -> Iterator[str]:
        return iter(SHAPES)

    def __len__(self) -> int:
        return len(SHAPES)


def test_content_that_is_there_is_neither_hashed_nor_copied_nor_compared_again() -> None:
    bank = make_bank()
    first = PackedAdapter("a", "a", {0: layer_of({0: 1, 1: 2}, ("one", "two"))})
    again = PackedAdapter("b", "b", {0: PackedLayer((0, 1), Untouchable(), ("one", "two"))})
    bank.install(1, first)
    bank.check_fits([first, again], "x")
    bank.install(2, again)
    bank.check_integrity({1: first})
    assert bank.layers[0].owned[1] == bank.layers[0].owned[2]
    with pytest.raises(AssertionError, match="was read"):
        bank.check_integrity({2: again})


def test_given_digests_decide_and_never_meet_computed_ones() -> None:
    bank = make_bank(slots=3)
    given = PackedAdapter("a", "a", {0: layer_of({0: 1}, ("one",))})
    other = PackedAdapter("b", "b", {0: layer_of({0: 1}, ("other",))})
    computed = adapter_of({0: 1})
    for slot, adapter in enumerate((given, other, computed), 1):
        bank.install(slot, adapter)
    assert rows(bank) == 3
    check(bank, {1: given, 2: other, 3: computed})


@pytest.mark.parametrize("given", [True, False])
def test_ranks_decide_alike_by_digests_of_whole_experts(given: bool) -> None:
    """Two experts whose slices are equal on the first rank only."""
    owned = []
    for slices in ((1, 1), (1, 2)):
        bank = make_bank()
        for slot, (digest, content) in enumerate(zip(("one", "two"), slices, strict=True), 1):
            digests = (digest,) if given else None
            bank.install(slot, PackedAdapter(digest, digest, {0: layer_of({0: content}, digests)}))
        owned.append(bank.layers[0].owned)
    assert (owned[0] == owned[1]) == given


def test_digests_are_as_many_as_experts() -> None:
    bank = make_bank()
    with pytest.raises(ValueError):
        bank.install(1, PackedAdapter("a", "a", {0: layer_of({0: 1, 1: 2}, ("one",))}))
    check(bank, {})


def test_computed_digests_see_bytes_and_not_their_place() -> None:
    weight = random_bits((3, 4, 6), 1)
    plain = PackedLayer((0, 1, 2), {"w": weight}).content_digests
    strided = torch.empty(3, 6, 4, dtype=torch.bfloat16).transpose(1, 2)
    strided.copy_(weight)
    assert PackedLayer((4, 5, 6), {"w": strided}).content_digests == plain
    assert len(set(plain)) == 3
    assert PackedLayer((0,), {"w": weight[2:]}).content_digests == plain[2:]
    assert PackedLayer((0, 1, 2), {"v": weight}).content_digests != plain
    assert PackedLayer((0, 1, 2), {"w": weight.view(torch.float16)}).content_digests != plain
    assert PackedLayer((0, 1, 2), {"w": weight.view(3, 6, 4)}).content_digests != plain
    changed = weight.clone()
    changed.view(torch.uint8)[1, 3, -1] ^= 1
    differing = [a != b for a, b in zip(PackedLayer((0, 1, 2), {"w": changed}).content_digests, plain, strict=True)]
    assert differing == [False, True, False]
    for name in ("v", "w"):
        pair = {"v": weight, "w": weight} | {name: changed}
        both = PackedLayer((0, 1, 2), {"v": weight, "w": weight}).content_digests
        found = PackedLayer((0, 1, 2), pair).content_digests
        assert [a != b for a, b in zip(found, both, strict=True)] == [False, True, False], name
    scales = PackedLayer((0, 1), {"scale": torch.tensor([1.0, 2.0])}).content_digests
    assert len(set(scales)) == 2, "a number an expert"


def test_admission_counts_what_is_distinct() -> None:
    bank = make_bank(adapter_rows=4)
    old, new = adapter_of({0: 1, 1: 2, 2: 3}), adapter_of({0: 1, 1: 9, 2: 3})
    bank.check_fits([old, new, old, new], "x")
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        bank.check_fits([old, adapter_of({0: 1, 1: 9, 2: 10})], "x")


def test_memory_is_admitted_by_distinct_content_too() -> None:
    bank = make_bank(adapter_pages=14)
    one = packed({0: [0, 1], 1: [0, 1]}, 1)
    bank.check_fits([one, one], "x")
    with pytest.raises(CapacityError, match="MEMORY_EXHAUSTED"):
        bank.check_fits([one, packed({0: [0, 1], 1: [0, 1]}, 2)], "x")


@pytest.mark.parametrize("damage", ["fewer", "more", "unused", "unmapped slot", "two experts, one row", "books"])
def test_check_integrity_sees_wrong_counts(damage: str) -> None:
    bank = make_bank()
    adapter = packed({0: [1, 2]}, 1)
    bank.install(1, adapter)
    bank.install(2, adapter)
    layer = bank.layers[0]
    row = layer.owned[1][0]
    bank.check_integrity()
    match damage:
        case "fewer":
            layer.users.drop(row)
        case "more":
            layer.users.add(str(layer.contents(adapter.layers[0])[0]), row)
        case "unused":
            extra = layer.rows.allocate([0], "x")
            for tensor in layer.tensors.values():
                tensor.map_rows(extra)
        case "unmapped slot":
            layer.map.withdraw(2)
        case "two experts, one row":
            layer.owned[1][1] = row
            layer.map.publish(1, {1: row, 2: row})
        case "books":
            layer.users._row_of["elsewhere"] = row
    with pytest.raises(IntegrityError):
        bank.check_integrity()


def test_the_deep_check_reads_shared_rows() -> None:
    bank = make_bank()
    adapter, other = packed({0: [1, 2]}, 1), packed({0: [1, 2]}, 2)
    bank.install(1, adapter)
    bank.install(2, adapter)
    bank.check_integrity({1: adapter, 2: adapter})
    with pytest.raises(IntegrityError, match="ROW_CONTENT"):
        bank.check_integrity({1: adapter, 2: other})
    with pytest.raises(IntegrityError, match="MAP_INCONSISTENT"):
        bank.check_integrity({1: packed({0: [1, 3]}, 1)})
    with pytest.raises(IntegrityError, match="MAP_INCONSISTENT"):
        bank.check_integrity({1: packed({1: [1]}, 1)})
    bank.layers[0].tensors["w13"].row_view(bank.layers[0].owned[1][1]).view(torch.uint8)[-1, -1] ^= 1
    bank.check_integrity()
    with pytest.raises(IntegrityError, match="ROW_CONTENT"):
        bank.check_integrity({2: adapter})
