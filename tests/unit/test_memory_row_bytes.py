"""Writing and comparing rows, against torch on the same bits."""

from __future__ import annotations

import pytest
import torch

from npu_weave.memory.row_bytes import same_bits, write_bits

SIZES = [1, 7, 4096, 16 << 10, (16 << 10) + 1, (1 << 20) + 3]


def random_bytes(size: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_a_row_holds_what_was_written_and_its_neighbours_what_they_held(size: int) -> None:
    memory, source = random_bytes(size + 2, 1), random_bytes(size, 2)
    around = memory[[0, -1]].clone()
    assert write_bits(memory[1:-1], source)
    assert torch.equal(memory[1:-1], source) and torch.equal(memory[[0, -1]], around)


@pytest.mark.parametrize("size", SIZES)
def test_every_place_of_a_differing_bit_is_seen(size: int) -> None:
    row, other = random_bytes(size, 1), random_bytes(size, 1)
    assert same_bits(row, other)
    for place in {0, size // 2, size - 1}:
        other[place] ^= 128
        assert not same_bits(row, other)
        other[place] ^= 128


@pytest.mark.parametrize("size", [7, 4096, (16 << 10) + 2, (1 << 20) + 3])
@pytest.mark.parametrize("place", [0, -1], ids=["at its start", "at its end"])
def test_a_write_that_does_not_last_is_found(size: int, place: int) -> None:
    """Row and source in one memory, a byte apart: where bytes differ, writing the one changes the other."""
    memory = torch.zeros(size + 1, dtype=torch.uint8)
    row, source = memory[1:], memory[:-1]
    assert write_bits(row, source), "all bytes equal: nothing changes"
    source[place] = 1
    assert not write_bits(row, source)


def test_nan_and_negative_zero_are_told_apart_by_their_bits() -> None:
    nan, row = torch.tensor([float("nan"), -0.0]), torch.empty(2)
    assert write_bits(row, nan) and same_bits(row, nan)
    assert not same_bits(row, torch.tensor([float("nan"), 0.0]))


def test_a_source_with_gaps_is_written_whole() -> None:
    source, row = random_bytes(512, 3).view(16, 32).t(), torch.zeros(32, 16, dtype=torch.uint8)
    assert write_bits(row, source) and torch.equal(row, source)


@pytest.mark.parametrize("other", [torch.zeros(3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int16)])
def test_sizes_must_agree(other: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="equal size"):
        write_bits(torch.zeros(4, dtype=torch.uint8), other)
