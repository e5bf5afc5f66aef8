"""The operators of vllm-ascend's own library (torch.ops._C_ascend) that its models reach.

The library itself needs the real torch_npu and does not load here, by which vllm-ascend learns that its other custom
operators are not to be had.
"""

from __future__ import annotations

import torch

from torch_npu.operators import moe_routing, swiglu_quant
from torch_npu.strict import operator

NAMESPACE = "_C_ascend"
HOME = f"torch.ops.{NAMESPACE}"

GATING = (
    "moe_gating_top_k(Tensor x, int k, int k_group, int group_count, int group_select_mode, int renorm, int norm_type, "
    "bool out_flag, float routed_scaling_factor, float eps, Tensor? bias_opt=None) -> (Tensor, Tensor, Tensor)"
)
ROUTING = (
    "npu_moe_init_routing_custom(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, "
    "bool expert_tokens_num_flag=False, int quant_mode=0, int[2] active_expert_range=[], int row_idx_type=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
PROJECTING = (
    "grouped_matmul_swiglu_quant_weight_nz(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, "
    "Tensor group_list, *, Tensor? bias=None, Tensor? offset=None, float swiglu_limit=0.0) "
    "-> (Tensor output, Tensor output_scale, Tensor output_offset)"
)
ACTIVATING = (
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
    "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
    "bool activate_left=True, int quant_mode=0, int swiglu_mode=0, float clamp_limit=0.0, float glu_alpha=1.0, "
    "float glu_bias=0.0) -> (Tensor y, Tensor scale)"
)


@operator(GATING, home=HOME)
def moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    bias_opt: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `moe_routing.gate`."""
    return moe_routing.gate(
        x, k, bias_opt, k_group, group_count, group_select_mode, renorm, norm_type, out_flag, routed_scaling_factor, eps
    )


@operator(ROUTING, home=HOME)
def npu_moe_init_routing_custom(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    scale: torch.Tensor | None,
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: list[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `moe_routing.route`."""
    return moe_routing.route(
        x, expert_idx, scale, active_num, expert_num, expert_tokens_num_type, expert_tokens_num_flag, quant_mode,
        active_expert_range, row_idx_type,
    )  # fmt: skip


@operator(PROJECTING, home=HOME)
def grouped_matmul_swiglu_quant_weight_nz(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, x_scale: torch.Tensor, group_list: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `swiglu_quant.project_and_quantise`."""
    return swiglu_quant.project_and_quantise(x, weight, weight_scale, x_scale, group_list)


@operator(ACTIVATING, home=HOME)
def npu_dequant_swiglu_quant(
    x: torch.Tensor,
    weight_scale: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    group_index: torch.Tensor | None,
    activate_left: bool,
    quant_mode: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `swiglu_quant.activate_and_quantise`."""
    return swiglu_quant.activate_and_quantise(x, weight_scale, activation_scale, group_index, activate_left, quant_mode)


OPERATORS = {
    GATING: moe_gating_top_k,
    ROUTING: npu_moe_init_routing_custom,
    PROJECTING: grouped_matmul_swiglu_quant_weight_nz,
    ACTIVATING: npu_dequant_swiglu_quant,
}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def install() -> None:
    """Defines the operators. Once a process."""
    for schema, function in OPERATORS.items():
        _library.define(schema)
        _library.impl(schema.partition("(")[0], function, "CPU")
