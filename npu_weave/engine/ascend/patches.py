"""Every touch of vllm-ascend's code, besides those of vLLM's (`engine.vllm.patches`)."""

from __future__ import annotations

import importlib.util

from npu_weave.engine.ascend import hooks
from npu_weave.engine.vllm.patch import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        "vllm_ascend.ascend_forward_context",
        "select_moe_comm_method",
        "--enable-lora makes expert parallelism use AlltoAll alone, so that MC2 and graph capture are lost",
        "the choice looks at LoRA layers instead of the setting",
        hooks.choose_communication_without_lora,
    ),
    Patch(
        "vllm_ascend.device.device_op",
        "DeviceOperator.moe_gating_top_k",
        "gating and rerouting are one operator, where it answers as vllm-ascend's own",
        "vllm-ascend maps experts to rows by a table of each token's",
        hooks.gate_in_one_operator,
    ),
    Patch(
        "vllm_ascend.ops.fused_moe.moe_comm_method",
        "MoECommMethod.fused_experts",
        "tokens go to rows of the widened weights: after gating, padding and splitting, before any dispatch",
        "vllm-ascend maps experts to rows by a table of each token's",
        hooks.dispatch_rows,
    ),
)


def on_npu() -> tuple[Patch, ...]:
    """The patches, where vllm-ascend is installed; none elsewhere."""
    return PATCHES if importlib.util.find_spec("vllm_ascend") is not None else ()
