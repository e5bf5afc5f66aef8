"""What each patch of vllm-ascend puts in place; `patches` says why. Without our key all is vllm-ascend's own."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from npu_weave.config import config_from


class _WithoutLora:
    """A VllmConfig, seen without its LoRA settings."""

    lora_config = None

    def __init__(self, vllm_config: Any) -> None:
        self._vllm_config = vllm_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vllm_config, name)


def choose_communication_without_lora(module: ModuleType) -> None:
    """Adapters are experts as any: the communication method is that of the base model."""
    original = module.select_moe_comm_method

    @functools.wraps(original)
    def select_moe_comm_method(num_tokens: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        seen = vllm_config if config_from(vllm_config.additional_config) is None else _WithoutLora(vllm_config)
        return original(num_tokens, seen, *args, **kwargs)

    module.select_moe_comm_method = select_moe_comm_method  # type: ignore[attr-defined]


def gate_in_one_operator(module: ModuleType) -> None:
    """Layers of ours may choose rows at once."""
    operators = module.DeviceOperator
    original = operators.moe_gating_top_k

    @functools.wraps(original)
    def moe_gating_top_k(x: Any, **settings: Any) -> Any:
        from npu_weave.engine.ascend import fused_gating

        return fused_gating.gated(original, x, settings)

    operators.moe_gating_top_k = staticmethod(moe_gating_top_k)


def dispatch_rows(module: ModuleType) -> None:
    """Layers of ours are dispatched by rows."""
    method = module.MoECommMethod
    original = method.fused_experts

    @functools.wraps(original)
    def fused_experts(self: Any, fused_experts_input: Any) -> Any:
        from npu_weave.engine.ascend import dispatch

        return original(self, dispatch.widened(self, fused_experts_input))

    method.fused_experts = fused_experts
