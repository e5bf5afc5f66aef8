"""One matrix product an expert, for rows that are sorted by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from torch_npu import formats
from torch_npu.operators.quantisation import check_row_scale, element_type, exact_product, scaled_product
from torch_npu.strict import check, operator

MAX_GROUPS = 1024
ROWS_SORTED = 0
"""group_type: the rows of x are grouped."""

CUMULATIVE, COUNTS = 0, 1
"""group_list_type: where each group ends, or how many rows it has."""

ONE_OUTPUT = (2, 3)
"""split_item: the groups' results lie in one tensor."""

SCALE_OF = {torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}
"""For each type of result of int8 products, that of the scales of columns. Results in int32 have none."""

OptionalTensors = Sequence[torch.Tensor] | None


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


def groups_with_rows(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each group that has rows, and which those are. The others' weights must not be read."""
    start = 0
    for group, count in enumerate(counts):
        if count:
            yield group, slice(start, start + count)
        start += count


def check_operands(rows: torch.Tensor, weight: torch.Tensor) -> None:
    """Refuses rows ``[rows, K]`` and weights ``[E, K, N]``, in ND or FRACTAL_NZ, that do not go together."""
    check(weight.dim() == 3, "weight", f"[E, K, N], not {tuple(weight.shape)}")
    right = rows.dim() == 2 and rows.is_contiguous() and formats.declared(rows) is None
    check(right, "x", f"contiguous [rows, K], not {tuple(rows.shape)}")
    check(rows.shape[1] == weight.shape[1], "x", f"K {rows.shape[1]}, where the weight has {weight.shape[1]}")
    check(rows.dtype == weight.dtype, "weight", f"{weight.dtype}, where x is {rows.dtype}")
    check(len(weight) <= MAX_GROUPS, "weight", f"at most {MAX_GROUPS} groups, not {len(weight)}")
    formats.check_stack(weight, "weight")


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
    bias: OptionalTensors,
    scale: OptionalTensors,
    per_token_scale: OptionalTensors,
    group_list: torch.Tensor | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int | None,
    output_dtype: torch.dtype | int | None,
) -> list[torch.Tensor]:
    """Multiplies each group of rows with its expert's matrix (documented as aclnnGroupedMatmulV4).

    Args:
        x: one tensor ``[rows, K]``, sorted by group; rows after the last group are in none.
        weight: one tensor ``[E, K, N]`` of the same type, in ND or FRACTAL_NZ. Only the matrices of groups that have
            rows are read.
        bias: one tensor ``[E, N]``, unless x is int8.
        scale: for int8, one tensor ``[E, N]`` of the type in `SCALE_OF`; none if the result is int32.
        per_token_scale: for int8 with `scale`, one tensor float32 ``[rows]``, or none.
        group_list: int64 ``[E]``.
        output_dtype: for int8, bfloat16, float16 or int32.

    Returns one tensor ``[rows, N]`` of x's type or output_dtype; rows in no group, undefined on a device, are 0.
    """
    check(split_item in ONE_OUTPUT, "split_item", f"2 and 3 are emulated, not {split_item}")
    check(group_type == ROWS_SORTED, "group_type", f"0 is emulated, not {group_type}")
    check(len(x) == 1 and len(weight) == 1, "weight", f"one x and one weight, not {len(x)} and {len(weight)}")
    check(group_list is not None, "group_list", "is needed")
    assert group_list is not None and group_list_type is not None
    rows, experts = x[0], weight[0]
    check_operands(rows, experts)
    if rows.dtype == torch.int8:
        check(bias is None, "bias", "is not emulated for int8")
        kind, product = _quantised_product(rows, experts, scale, per_token_scale, output_dtype)
    else:
        kind, product = _plain_product(rows, experts, bias, scale, per_token_scale, output_dtype)
    output = torch.zeros(len(rows), experts.shape[2], dtype=kind)
    counts = counts_of(group_list, group_list_type, len(experts), len(rows))
    for group, part in groups_with_rows(counts):
        output[part] = product(group, part).to(kind)
    return [output]


Product = tuple[torch.dtype, Callable[[int, slice], torch.Tensor]]
"""The type of results, and what computes those of a group's rows."""


def _plain_product(
    rows: torch.Tensor,
    experts: torch.Tensor,
    bias: OptionalTensors,
    scale: OptionalTensors,
    per_token_scale: OptionalTensors,
    output_dtype: torch.dtype | int | None,
) -> Product:
    check(rows.is_floating_point(), "x", f"{rows.dtype} is not emulated")
    check(scale is None, "scale", f"only for int8, and x is {rows.dtype}")
    check(per_token_scale is None, "per_token_scale", f"only for int8, and x is {rows.dtype}")
    kind = element_type(output_dtype, rows.dtype, "output_dtype")
    check(kind == rows.dtype, "output_dtype", f"{rows.dtype} like x, not {kind}")
    if bias is not None:
        groups, _, width = experts.shape
        right = len(bias) == 1 and tuple(bias[0].shape) == (groups, width) and bias[0].is_floating_point()
        check(right, "bias", f"one tensor [{groups}, {width}]")

    def product(group: int, part: slice) -> torch.Tensor:
        # float64: a row's result does not depend on how many rows its group has
        result = rows[part].double() @ formats.matrix_of(experts, group).double()
        return result if bias is None else result + bias[0][group].double()

    return rows.dtype, product


def _quantised_product(
    rows: torch.Tensor,
    experts: torch.Tensor,
    scale: OptionalTensors,
    per_token_scale: OptionalTensors,
    output_dtype: torch.dtype | int | None,
) -> Product:
    kind = element_type(output_dtype, torch.int8, "output_dtype")
    check(kind in (*SCALE_OF, torch.int32), "output_dtype", f"bfloat16, float16 and int32 are emulated, not {kind}")
    if kind == torch.int32:
        check(scale is None, "scale", "none where the result is int32")
        check(per_token_scale is None, "per_token_scale", "none where the result is int32")
        return kind, lambda group, part: exact_product(rows[part], formats.matrix_of(experts, group))
    groups, _, width = experts.shape
    right = scale is not None and len(scale) == 1 and tuple(scale[0].shape) == (groups, width)
    right = right and scale is not None and scale[0].dtype == SCALE_OF[kind]
    check(right, "scale", f"one tensor {SCALE_OF[kind]} [{groups}, {width}] for results in {kind}")
    assert scale is not None
    columns, by_row = scale[0], None
    if per_token_scale is not None:
        check(len(per_token_scale) == 1, "per_token_scale", f"one tensor, not {len(per_token_scale)}")
        check_row_scale(per_token_scale[0], len(rows), "per_token_scale")
        by_row = per_token_scale[0]

    def product(group: int, part: slice) -> torch.Tensor:
        matrix = formats.matrix_of(experts, group)
        return scaled_product(rows[part], matrix, columns[group], None if by_row is None else by_row[part])

    return kind, product
