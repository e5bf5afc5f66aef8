"""A layer's parameters from its experts' matrices: what torch makes of them, for every rank."""

from __future__ import annotations

import pytest
import torch

from npu_weave.experts.assembly import assembled, share_of, trial_expert
from npu_weave.memory.row_bytes import copy_matrices

HIDDEN, WIDTH = 48, 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1), (4, 2)])
def test_parameters_are_the_stacked_matrices_of_a_rank(ranks: int, rank: int, dtype: torch.dtype) -> None:
    experts = [trial_expert(HIDDEN, WIDTH, torch.float32), trial_expert(HIDDEN, WIDTH, torch.float32)]
    experts = [type(each)(*((matrix * 9 * (at + 1)).to(dtype) for matrix in each)) for at, each in enumerate(experts)]
    made = assembled(experts, share_of(ranks, rank))
    mine = slice(rank * WIDTH // ranks, (rank + 1) * WIDTH // ranks)
    w13 = torch.stack([torch.cat([each.gate[mine], each.up[mine]]) for each in experts])
    assert torch.equal(made["w13_weight"], w13)
    assert torch.equal(made["w2_weight"], torch.stack([each.down[:, mine] for each in experts]))
    assert made["w13_weight"].dtype == made["w2_weight"].dtype == dtype


@pytest.mark.parametrize(
    ("place", "matrix"),
    [
        (torch.zeros(2, 3), torch.ones(3, 2)),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)),
        (torch.zeros(2, 6)[:, :3], torch.ones(2, 3)),
        (torch.zeros(3, 2), torch.ones(2, 3).t()),
        (torch.zeros(6), torch.ones(6)),
        (torch.zeros(2, 3), torch.ones(2, 3, device="meta")),
    ],
    ids=["shape", "type", "place of columns", "transposed", "no matrix", "device"],
)
def test_what_cannot_be_copied_row_by_row_is_refused_and_nothing_written(
    place: torch.Tensor, matrix: torch.Tensor
) -> None:
    good = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="contiguous places"):
        copy_matrices([good, place], [torch.ones(1, 1), matrix])
    assert not good.any() and not place.any()
    with pytest.raises(ValueError, match="a place for every matrix"):
        copy_matrices([good], [])


def test_the_trial_expert_is_the_same_each_time() -> None:
    one, other = (trial_expert(HIDDEN, WIDTH, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert [tuple(each.shape) for each in one] == [(WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
