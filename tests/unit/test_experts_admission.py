"""The bound on rows that adapters can need together: never too low, and tight where revisions share most experts."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npu_weave.experts.admission import most_rows

ADAPTERS = st.lists(st.sets(st.sampled_from("abcdefghijkl"), max_size=6), max_size=6)


def exact(adapters: list[set[str]], chosen: int) -> int:
    """By trying every choice."""
    ways = combinations(adapters, min(chosen, len(adapters)))
    return max(len(set().union(*way)) for way in ways)


@given(adapters=ADAPTERS, chosen=st.integers(1, 6))
def test_never_too_low_and_never_more_than_without_sharing(adapters: list[set[str]], chosen: int) -> None:
    bound = most_rows(adapters, chosen)
    assert exact(adapters, chosen) <= bound <= sum(sorted(map(len, adapters))[-chosen:])
    assert bound <= len(set().union(*adapters))


@given(adapters=ADAPTERS, chosen=st.integers(1, 6), data=st.data())
def test_order_does_not_matter(adapters: list[set[str]], chosen: int, data: st.DataObject) -> None:
    assert most_rows(data.draw(st.permutations(adapters)), chosen) == most_rows(adapters, chosen)


@given(sizes=st.lists(st.integers(0, 5), max_size=6), chosen=st.integers(1, 6))
def test_exact_without_sharing(sizes: list[int], chosen: int) -> None:
    adapters = [{f"{number} {each}" for each in range(size)} for number, size in enumerate(sizes)]
    assert most_rows(adapters, chosen) == exact(adapters, chosen)


def revision(family: str, number: int, changed: int = 2, size: int = 60) -> set[str]:
    """Revision `number` of an adapter of 60 experts: each changes two other experts of the first."""
    new = range((number - 1) * changed, number * changed) if number else range(0)
    return {f"{family} {expert} {number if expert in new else 0}" for expert in range(size)}


@pytest.mark.parametrize("slots", [2, 3, 8])
def test_the_next_revision_costs_what_it_changes(slots: int) -> None:
    assert most_rows([revision("a", 0)], slots) == 60
    assert most_rows([revision("a", 0), revision("a", 1)], slots) == 62
    assert most_rows([revision("a", 0)] * 5, slots) == 60, "replicas cost nothing"
    assert most_rows([revision("a", 0), revision("a", 1), revision("b", 0)], slots) == (120 if slots == 2 else 122)


def test_more_revisions_than_slots_of_several_adapters() -> None:
    known = [revision(family, number) for family in "abcd" for number in range(3)]
    assert most_rows(known, 4) == 4 * 60 == exact(known, 4)
    assert most_rows(known, 12) == 4 * 64 == exact(known, 12)


def test_an_adapter_that_joins_two_families() -> None:
    assert most_rows([{"a", "b"}, {"c", "d"}, {"b", "c"}], 3) == 4
    assert most_rows([{"a", "b"}, {"c", "d"}, {"e", "f"}], 3) == 6


def test_nothing_known_needs_nothing() -> None:
    assert most_rows([], 2) == 0 and most_rows([[], []], 2) == 0
