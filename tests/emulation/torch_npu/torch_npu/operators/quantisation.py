"""Rows of int8 with a scale each, and products of them.

Numbers: products of int8 are summed as integers, without rounding. Everything else is float32, and is rounded once, to
the type of the result. The documents do not say where halves go when a row is quantised; here to the even integer.
"""

from __future__ import annotations

import torch

from torch_npu import formats
from torch_npu.strict import check, operator

LARGEST = 127


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[..., H]`` as int8 and the scale of each row, float32 ``[...]``: its largest magnitude becomes 127 or -127.

    A row of zeros has scale 0.
    """
    values = rows.float()
    scale = values.abs().amax(-1) / LARGEST
    divided = values / torch.where(scale > 0, scale, 1.0)[..., None]
    return divided.round().to(torch.int8), scale


def exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The integers ``left @ right`` of int8 matrices, in float64: exact, below 2**39 summands."""
    return left.double() @ right.double()


def scaled_product(
    left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, row_scale: torch.Tensor | None
) -> torch.Tensor:
    """``[M, K] @ [K, N]`` of int8 in float32, times the scales of columns ``[N]`` and rows ``[M]``."""
    result = exact_product(left, right).float() * scale.float()
    return result if row_scale is None else result * row_scale[:, None]


def element_type(given: torch.dtype | int | None, default: torch.dtype, argument: str) -> torch.dtype:
    """The type that a caller asks for. torch_npu numbers types too, which is not emulated."""
    check(given is None or isinstance(given, torch.dtype), argument, f"a torch.dtype is emulated, not {given!r}")
    return given if isinstance(given, torch.dtype) else default


@operator(
    "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
    'str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)'
)
def npu_dynamic_quant(input: torch.Tensor, dst_type: torch.dtype | int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row as int8, and its scale (documented as torch_npu.npu_dynamic_quant and aclnnDynamicQuantV2).

    Args:
        input: float16 or bfloat16 ``[..., H]`` of two dimensions and more.

    Returns int8 ``[..., H]`` and float32 ``[...]``. See `quantised`.
    """
    right = input.dtype in (torch.float16, torch.bfloat16) and input.dim() > 1
    check(right, "input", f"float16 or bfloat16 [..., H], not {input.dtype} {tuple(input.shape)}")
    wanted = element_type(dst_type, torch.int8, "dst_type")
    check(wanted == torch.int8, "dst_type", f"torch.int8 is emulated, not {wanted}")
    return quantised(formats.in_order(input, "input"))


@operator(
    "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, "
    "Tensor? bias=None, int? output_dtype=None, int? x1_dtype=None, int? x2_dtype=None, "
    "int? pertoken_scale_dtype=None, int? scale_dtype=None, int[]? group_sizes=None, Tensor? y_scale=None) -> Tensor"
)
def npu_quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_dtype: torch.dtype | int | None,
) -> torch.Tensor:
    """``x1 @ x2`` times scales (documented as torch_npu.npu_quant_matmul), as far as activations are quantised by row.

    Args:
        x1: int8 ``[M, K]``.
        x2: int8 ``[K, N]``, in ND or FRACTAL_NZ.
        scale: ``[N]`` or ``[1]``; for bfloat16 results bfloat16 or float32, for float16 float32.
        pertoken_scale: float32 ``[M]``.
        bias: of the result's type or float32, ``[N]``; or int32, added before scales apply.
        output_dtype: bfloat16 or float16.

    Returns ``[M, N]``.
    """
    right = x1.dtype == torch.int8 and x1.dim() == 2
    check(right, "x1", f"int8 [M, K], not {x1.dtype} {tuple(x1.shape)}")
    rows, inner = x1.shape
    right = x2.dtype == torch.int8 and x2.dim() == 2 and len(x2) == inner
    check(right, "x2", f"int8 [{inner}, N], not {x2.dtype} {tuple(x2.shape)}")
    columns = x2.shape[1]
    wanted = element_type(output_dtype, torch.int8, "output_dtype")
    check(wanted in SCALES, "output_dtype", f"bfloat16 and float16 are emulated, not {wanted}")
    right = scale.dtype in SCALES[wanted] and tuple(scale.shape) in ((columns,), (1,))
    check(right, "scale", f"[{columns}] or [1] of {SCALES[wanted]}, not {scale.dtype} {tuple(scale.shape)}")
    check(pertoken_scale is not None, "pertoken_scale", "only products of quantised rows are emulated")
    assert pertoken_scale is not None
    check_row_scale(pertoken_scale, rows, "pertoken_scale")
    summed = exact_product(x1, formats.in_order(x2, "x2"))
    if bias is not None:
        right = tuple(bias.shape) == (columns,) and bias.dtype in (torch.int32, torch.float32, wanted)
        check(right, "bias", f"[{columns}] of int32, float32 or {wanted}, not {bias.dtype} {tuple(bias.shape)}")
        if bias.dtype == torch.int32:
            summed = summed + bias
    result = summed.float() * scale.float() * pertoken_scale[:, None]
    if bias is not None and bias.dtype != torch.int32:
        result = result + bias.float()
    return result.to(wanted)


SCALES = {torch.bfloat16: (torch.bfloat16, torch.float32), torch.float16: (torch.float32,)}
"""For each type of result, the types that scales of columns may have."""


def check_row_scale(scale: torch.Tensor, rows: int, argument: str) -> None:
    """Refuses what is not one float32 a row."""
    right = scale.dtype == torch.float32 and tuple(scale.shape) == (rows,)
    check(right, argument, f"float32 [{rows}], not {scale.dtype} {tuple(scale.shape)}")
