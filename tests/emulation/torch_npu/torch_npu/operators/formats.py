"""Memory formats, of which there is one: ND, the order in which torch lays elements out."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator

ND = 2


@operator(
    "npu_format_cast(Tensor input, int acl_format, *, int? customize_dtype=None, int? input_dtype=None) -> Tensor"
)
def npu_format_cast(input: torch.Tensor, acl_format: int) -> torch.Tensor:
    check(acl_format == ND, "acl_format", f"only ND (2) is emulated, not {int(acl_format)}; 29 is FRACTAL_NZ")
    return input


@operator("get_npu_format(Tensor input) -> int")
def get_npu_format(input: torch.Tensor) -> int:
    return ND
