"""What differs between devices in a worker: one object for each that vLLM runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from vllm.config import VllmConfig

from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import MoELayerPort


class EngineMoELayer(MoELayerPort, Protocol):
    """`MoELayerPort` of a running engine.

    Attributes:
        gating_is_fused: whether one operator gates and reroutes here.
    """

    gating_is_fused: bool

    @property
    def placement(self) -> ExpertPlacement:
        """Where the layer's experts lie."""


@dataclass(frozen=True)
class Backend:
    """One kind of device.

    Attributes:
        find_moe_layers: the MoE layers of a loaded model, in order.
        memory_device: the device whose memory drivers open for a worker on a given device.
    """

    find_moe_layers: Callable[[nn.Module, VllmConfig], Sequence[EngineMoELayer]]
    memory_device: Callable[[torch.device], torch.device]


def backend_of(device_type: str) -> Backend:
    """The backend for vLLM's device type; settings with another type have been refused by now."""
    if device_type == "npu":
        from npu_weave.engine.ascend import moe_layer, npu

        return Backend(moe_layer.find_moe_layers, npu.memory_device)
    from npu_weave.engine.vllm import moe_layer as vllm_moe_layer

    return Backend(vllm_moe_layer.find_moe_layers, lambda device: device)
