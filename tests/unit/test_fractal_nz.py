"""The blocked layout of an NPU's weights, against a loop that places element by element."""

from __future__ import annotations

import pytest
import torch

from npu_weave.memory import fractal_nz


def by_hand(matrix: torch.Tensor, columns: int) -> torch.Tensor:
    """Element (k, n) goes to block (n // columns, k // 16), place (k % 16, n % columns)."""
    rows, width = matrix.shape
    blocks = torch.zeros(-(-width // columns), -(-rows // 16), 16, columns, dtype=matrix.dtype)
    for k in range(rows):
        for n in range(width):
            blocks[n // columns, k // 16, k % 16, n % columns] = matrix[k, n]
    return blocks


@pytest.mark.parametrize(
    ("dtype", "columns"), [(torch.bfloat16, 16), (torch.float16, 16), (torch.int8, 32), (torch.float32, 16)]
)
@pytest.mark.parametrize("shape", [(16, 16), (32, 64), (48, 80), (5, 7), (17, 33)])
def test_every_element_lies_in_its_block(shape: tuple[int, int], dtype: torch.dtype, columns: int) -> None:
    matrices = torch.arange(1, 1 + 3 * shape[0] * shape[1]).view(3, *shape).to(dtype)
    packed = fractal_nz.pack(matrices)
    assert fractal_nz.block_columns(dtype) == columns
    assert tuple(packed.shape) == fractal_nz.storage_shape((3, *shape), dtype)
    for matrix, blocks in zip(matrices, packed, strict=True):
        assert torch.equal(blocks, by_hand(matrix, columns))
    assert packed.is_contiguous()
    assert torch.equal(fractal_nz.unpack(packed, (3, *shape)), matrices)


def test_an_expert_is_one_piece_of_the_same_size_where_blocks_divide_it() -> None:
    shape = (64, 2048, 1408)
    stored = fractal_nz.storage_shape(shape, torch.bfloat16)
    assert stored == (64, 88, 128, 16, 16)
    assert torch.Size(stored[1:]).numel() == 2048 * 1408
