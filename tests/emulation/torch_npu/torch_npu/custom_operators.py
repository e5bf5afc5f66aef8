"""The operators of vllm-ascend's own library (torch.ops._C_ascend) that its models reach on an A2.

The library itself needs the real torch_npu and does not load here, by which vllm-ascend learns that its other custom
operators are not to be had.
"""

from __future__ import annotations

import torch

from torch_npu.operators import moe_routing
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
    "bool expert_tokens_num_flag=False, int quant_mode=-1, int[2] active_expert_range=[], int row_idx_type=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
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
    active_num: int,
    expert_num: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    active_expert_range: list[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `moe_routing.route`."""
    return moe_routing.route(
        x, expert_idx, active_num, expert_num, expert_tokens_num_type, expert_tokens_num_flag, active_expert_range,
        row_idx_type,
    )  # fmt: skip


_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def install() -> None:
    """Defines the operators. Once a process."""
    for schema, function in ((GATING, moe_gating_top_k), (ROUTING, npu_moe_init_routing_custom)):
        _library.define(schema)
        _library.impl(schema.partition("(")[0], function, "CPU")
