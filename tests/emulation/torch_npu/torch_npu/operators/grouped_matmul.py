"""One matrix product an expert, for rows that are sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_npu.strict import check, operator

MAX_GROUPS = 1024
ROWS_SORTED = 0
"""group_type: the rows of x are grouped."""

CUMULATIVE, COUNTS = 0, 1
"""group_list_type: where each group ends, or how many rows it has."""

ONE_OUTPUT = (2, 3)
"""split_item: the groups' results lie in one tensor."""


def counts_of(group_list: torch.Tensor, kind: int, groups: int, rows: int) -> list[int]:
    """Rows of each group. Refuses a list that does not go with the weights or the rows."""
    right = group_list.dtype == torch.int64 and tuple(group_list.shape) == (groups,)
    check(right, "group_list", f"int64 [{groups}] like the weights, not {group_list.dtype} {tuple(group_list.shape)}")
    check(kind in (CUMULATIVE, COUNTS), "group_list_type", f"0 and 1 are emulated, not {kind}")
    listed = group_list.tolist()
    ends = listed if kind == CUMULATIVE else torch.cumsum(group_list, 0).tolist()
    counts = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    check(min(counts) >= 0, "group_list", f"a group of {min(counts)} rows")
    check(ends[-1] <= rows, "group_list", f"{ends[-1]} rows in all, but x has {rows}")
    return counts


@operator(
    "npu_grouped_matmul(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, "
    "Tensor[]? offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, "
    "Tensor[]? per_token_scale=None, Tensor? group_list=None, Tensor[]? activation_input=None, "
    "Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, int? split_item=0, "
    "int? group_type=None, int? group_list_type=0, int? act_type=0, int[]? tuning_config=None, int? output_dtype=None, "
    "int? x_dtype=None, int? weight_dtype=None, int? scale_dtype=None, int? per_token_scale_dtype=None) -> Tensor[]"
)
def npu_grouped_matmul(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor] | None,
    group_list: torch.Tensor | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int | None,
) -> list[torch.Tensor]:
    """Multiplies each group of rows with its expert's matrix.

    Args:
        x: one tensor ``[rows, K]``, sorted by group; rows after the last group are in none.
        weight: one tensor ``[E, K, N]``. Only the matrices of groups that have rows are read.
        bias: one tensor ``[E, N]``.
        group_list: int64 ``[E]``.

    Returns one tensor ``[rows, N]`` of x's type; rows in no group, undefined on a device, are 0.
    """
    check(split_item in ONE_OUTPUT, "split_item", f"2 and 3 are emulated, not {split_item}")
    check(group_type == ROWS_SORTED, "group_type", f"0 is emulated, not {group_type}")
    check(len(x) == 1 and len(weight) == 1, "weight", f"one x and one weight, not {len(x)} and {len(weight)}")
    check(group_list is not None, "group_list", "is needed")
    assert group_list is not None and group_list_type is not None
    rows, experts = x[0], weight[0]
    check(experts.dim() == 3, "weight", f"[E, K, N], not {tuple(experts.shape)}")
    check(rows.dim() == 2 and rows.is_contiguous(), "x", f"contiguous [rows, K], not {tuple(rows.shape)}")
    check(rows.shape[1] == experts.shape[1], "x", f"K {rows.shape[1]}, where the weight has {experts.shape[1]}")
    check(rows.dtype == experts.dtype, "weight", f"{experts.dtype}, where x is {rows.dtype}")
    check(rows.is_floating_point(), "x", f"{rows.dtype} is not emulated")
    groups, _, width = experts.shape
    check(groups <= MAX_GROUPS, "weight", f"at most {MAX_GROUPS} groups, not {groups}")
    if bias is not None:
        right = len(bias) == 1 and tuple(bias[0].shape) == (groups, width) and bias[0].is_floating_point()
        check(right, "bias", f"one tensor [{groups}, {width}]")
    output = rows.new_zeros(len(rows), width)
    start = 0
    for expert, count in enumerate(counts_of(group_list, group_list_type, groups, len(rows))):
        if count:
            product = rows[start : start + count].float() @ experts[expert].float()
            if bias is not None:
                product += bias[0][expert].float()
            output[start : start + count] = product.to(rows.dtype)
        start += count
    return [output]
