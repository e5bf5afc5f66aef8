"""An expert's gate and up projections, its activation and the quantisation of the result, in one operator."""

from __future__ import annotations

import torch

from torch_npu import formats
from torch_npu.operators.grouped_matmul import COUNTS, CUMULATIVE, check_operands, counts_of, groups_with_rows
from torch_npu.operators.quantisation import check_row_scale, quantised, scaled_product
from torch_npu.strict import check

MAX_COLUMNS = 10240
MAX_INNER = 65535
DYNAMIC = 1
"""quant_mode: each row gets a scale of its own."""


def activated(projected: torch.Tensor) -> torch.Tensor:
    """``silu(first half) * second half`` of rows in float32."""
    gate, up = projected.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def project_and_quantise(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projects each group of rows, activates and quantises (documented as aclnnGroupedMatmulSwigluQuantWeightNZ).

    Args:
        x: int8 ``[rows, K]``, sorted by group.
        weight: int8 ``[E, K, 2N]`` in FRACTAL_NZ: a device reads it so whatever it was declared. Only matrices of
            groups that have rows are read.
        weight_scale: ``[E, 2N]`` of float32, float16 or bfloat16.
        x_scale: float32 ``[rows]``.
        group_list: int64 ``[E]``, where each group ends.

    Returns int8 ``[rows, N]``, its scales float32 ``[rows]``, and nothing. Rows in no group, undefined on a device,
    are 0.
    """
    check(x.dtype == torch.int8, "x", f"int8, not {x.dtype}")
    check_operands(x, weight)
    check(formats.declared(weight) is not None, "weight", "must be in FRACTAL_NZ, and would be read so")
    groups, inner, columns = weight.shape
    check(inner <= MAX_INNER, "x", f"at most {MAX_INNER} columns, not {inner}")
    check(columns % 2 == 0 and columns <= MAX_COLUMNS, "weight", f"an even number to {MAX_COLUMNS}, not {columns}")
    _check_column_scale(weight_scale, groups, columns)
    check_row_scale(x_scale, len(x), "x_scale")
    output, scales = torch.zeros(len(x), columns // 2, dtype=torch.int8), torch.zeros(len(x))
    for group, part in groups_with_rows(counts_of(group_list, CUMULATIVE, groups, len(x))):
        projected = scaled_product(x[part], formats.matrix_of(weight, group), weight_scale[group], x_scale[part])
        output[part], scales[part] = quantised(activated(projected))
    return output, scales, torch.empty(0)


def activate_and_quantise(
    x: torch.Tensor,
    weight_scale: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    group_index: torch.Tensor | None,
    activate_left: bool,
    quant_mode: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales the integers of a grouped product, activates and quantises (documented as aclnnDequantSwigluQuant).

    Args:
        x: int32 ``[rows, 2N]``, sorted by group.
        weight_scale: float32 ``[E, 2N]``.
        activation_scale: float32 ``[rows]``.
        group_index: int64 ``[E]``, the rows of each group.

    Returns int8 ``[rows, N]`` and its scales, float32 ``[rows]``; rows in no group, undefined on a device, are 0.
    """
    right = x.dtype == torch.int32 and x.dim() == 2 and x.shape[1] % 2 == 0
    check(right, "x", f"int32 [rows, 2N], not {x.dtype} {tuple(x.shape)}")
    check(activate_left, "activate_left", "only True is emulated")
    check(quant_mode == DYNAMIC, "quant_mode", f"1 is emulated, not {quant_mode}")
    for name, needed in (("weight_scale", weight_scale), ("activation_scale", activation_scale)):
        check(needed is not None, name, "is needed")
    check(group_index is not None, "group_index", "is needed")
    assert weight_scale is not None and activation_scale is not None and group_index is not None
    check(weight_scale.dtype == torch.float32, "weight_scale", f"float32, not {weight_scale.dtype}")
    _check_column_scale(weight_scale, len(group_index), x.shape[1])
    check_row_scale(activation_scale, len(x), "activation_scale")
    output, scales = torch.zeros(len(x), x.shape[1] // 2, dtype=torch.int8), torch.zeros(len(x))
    for group, part in groups_with_rows(counts_of(group_index, COUNTS, len(weight_scale), len(x))):
        projected = x[part].float() * weight_scale[group] * activation_scale[part][:, None]
        output[part], scales[part] = quantised(activated(projected))
    return output, scales


def _check_column_scale(scale: torch.Tensor, groups: int, columns: int) -> None:
    right = scale.dtype in (torch.float32, torch.float16, torch.bfloat16) and tuple(scale.shape) == (groups, columns)
    check(right, "weight_scale", f"floating point [{groups}, {columns}], not {scale.dtype} {tuple(scale.shape)}")
