"""Rows of a layer: handed out once, taken back once, in runs that fit."""

from __future__ import annotations

import pytest

from npu_weave.errors import CapacityError, IntegrityError
from npu_weave.experts.rows import RowAllocator


def with_free(free: set[int], count: int = 12) -> RowAllocator:
    """Rows 10 ... 21, of which `free` are."""
    allocator = RowAllocator(10, count)
    allocator.allocate(count, "all")
    allocator.release(free)
    return allocator


def test_rows_start_after_the_base() -> None:
    allocator = RowAllocator(10, 4)
    assert allocator.allocate(4, "x") == [10, 11, 12, 13]
    assert allocator.free == 0


def test_nothing_is_an_allocation_too() -> None:
    allocator = RowAllocator(10, 4)
    assert allocator.allocate(0, "x") == [] and allocator.free == 4


@pytest.mark.parametrize(
    ("free", "count", "expected"),
    [
        ({10, 11, 12, 15, 16, 18}, 2, [15, 16]),  # the tightest run, not the first
        ({10, 11, 12, 15, 16, 18}, 3, [10, 11, 12]),
        ({10, 11, 12, 15, 16, 18}, 1, [18]),
        ({10, 11, 14, 15}, 2, [10, 11]),  # equal runs: the lower
        ({10, 12, 14, 15, 17}, 3, [10, 12, 14]),  # no run holds it: the lowest rows
        ({20, 21}, 2, [20, 21]),  # the last run counts
    ],
)
def test_best_fit(free: set[int], count: int, expected: list[int]) -> None:
    allocator = with_free(free)
    assert allocator.allocate(count, "x") == expected
    assert allocator.free == len(free) - count


def test_too_many_rows_are_refused_and_none_is_taken() -> None:
    allocator = with_free({10, 12})
    with pytest.raises(CapacityError) as error:
        allocator.allocate(3, "adapter 'x'")
    assert error.value.code == "ROWS_EXHAUSTED" and "adapter 'x'" in str(error.value)
    assert allocator.allocate(2, "x") == [10, 12]


@pytest.mark.parametrize("rows", [[9], [22], [-1], [10], [11, 10]])
def test_rows_not_handed_out_cannot_come_back(rows: list[int]) -> None:
    allocator = with_free({10})
    with pytest.raises(IntegrityError) as error:
        allocator.release(rows)
    assert error.value.code == "ROW_NOT_ALLOCATED"
    assert allocator.free == 1, "all or none"


def test_released_rows_join_their_neighbours() -> None:
    allocator = RowAllocator(0, 6)
    first, second, third = (allocator.allocate(2, "x") for _ in range(3))
    allocator.release(third)
    allocator.release(first)
    allocator.release(second)
    assert allocator.allocate(6, "x") == [0, 1, 2, 3, 4, 5]
