"""How a router chooses experts, as the fused operator takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)


@dataclass(frozen=True, eq=False)
class Gating:
    """The settings of ``gating_reroute``; see `weave_ops.schema` for their meaning."""

    top_k: int
    scoring: str = "softmax"
    renormalize: bool = True
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    correction_bias: torch.Tensor | None = None

    def gate(
        self, logits: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``gating_reroute``: weights float32 and rows int32, ``[tokens, top_k]`` each."""
        weights, rows = torch.ops.npu_weave.gating_reroute.default(
            logits,
            self.correction_bias,
            self.top_k,
            self.scoring,
            self.renormalize,
            self.n_group,
            self.topk_group,
            self.routed_scaling_factor,
            token_slots,
            expert_map,
        )
        return weights, rows

    @staticmethod
    def served_on(device: torch.device) -> bool:
        """Whether the operator has a kernel for tensors of this device."""
        key = {"cpu": "CPU", "cuda": "CUDA"}.get(device.type, "PrivateUse1")
        return torch._C._dispatch_has_kernel_for_dispatch_key("npu_weave::gating_reroute", key)
