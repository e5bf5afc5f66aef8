"""Casts between memory formats."""

from __future__ import annotations

import warnings

import torch

from torch_npu import formats, options
from torch_npu.formats import FRACTAL_NZ, ND
from torch_npu.strict import check, operator


@operator(
    "npu_format_cast(Tensor input, int acl_format, *, int? customize_dtype=None, int? input_dtype=None) -> Tensor"
)
def npu_format_cast(input: torch.Tensor, acl_format: int) -> torch.Tensor:
    """`input` if it has the format, else a copy in it, of the same shape and type.

    Without the option ALLOW_INTERNAL_FORMAT, FRACTAL_NZ is not given to anything: a warning is, and `input` returned.
    """
    check(acl_format in (ND, FRACTAL_NZ), "acl_format", f"2 (ND) and 29 (FRACTAL_NZ) are emulated, not {acl_format}")
    if acl_format == get_npu_format(input):
        return input
    if acl_format == ND:
        return formats.in_order(input, "input").contiguous()
    formats.check_castable(input, "input")
    if not options.internal_formats_allowed():
        warnings.warn("allow_internal_format=False: the tensor stays in ND", stacklevel=3)
        return input
    return formats.in_blocks(input)


@operator("get_npu_format(Tensor input) -> int")
def get_npu_format(input: torch.Tensor) -> int:
    return ND if formats.declared(input) is None else FRACTAL_NZ
