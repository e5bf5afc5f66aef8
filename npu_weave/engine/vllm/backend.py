"""What differs between devices in a worker: one object for each that vLLM runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn
from vllm.config import VllmConfig

from npu_weave.errors import UnsupportedError
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import MoELayerPort


class EngineMoELayer(MoELayerPort, Protocol):
    """`MoELayerPort` of a running engine."""

    @property
    def gating_is_fused(self) -> bool | None:
        """Whether one operator gates and reroutes here; None when that is settled at the first step."""

    @property
    def placement(self) -> ExpertPlacement:
        """Where the layer's experts lie."""

    def check_seated(self) -> None:
        """Raises IntegrityError TENSOR_RESEATED when the engine's weights no longer lie where they were bound to."""


Layer = TypeVar("Layer", bound=EngineMoELayer)


def index_in(name: str) -> int:
    """The index of the layer that a module of that path belongs to."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def in_layer_order(layers: Iterable[Layer], model: nn.Module) -> list[Layer]:
    """What `find_moe_layers` found in `model`, sorted.

    Raises:
        UnsupportedError: NO_MOE_LAYERS, nothing was found.
    """
    found = sorted(layers, key=lambda layer: layer.index)
    if not found:
        raise UnsupportedError(
            "NO_MOE_LAYERS",
            type(model).__name__,
            expected="a model with routed experts",
            got="none",
            remedy="npu-weave serves mixture-of-experts models only",
        )
    return found


@dataclass(frozen=True)
class Backend:
    """One kind of device.

    Attributes:
        find_moe_layers: the MoE layers of a loaded model, in order.
        memory_device: the device whose memory drivers open for a worker on a given device.
        compare_adapters: compares a digest of which adapters lie where over the data parallel ranks, all of which call;
            raises IntegrityError RANKS_DISAGREE. None where there is one rank only.
    """

    find_moe_layers: Callable[[nn.Module, VllmConfig], Sequence[EngineMoELayer]]
    memory_device: Callable[[torch.device], torch.device]
    compare_adapters: Callable[[str], None] | None = None


def backend_of(device_type: str) -> Backend:
    """The backend for vLLM's device type; settings with another type have been refused by now."""
    if device_type == "npu":
        from npu_weave.engine.ascend import moe_layer, npu
        from npu_weave.engine.ascend.data_parallel import check_same_adapters

        return Backend(moe_layer.find_moe_layers, npu.memory_device, check_same_adapters)
    from npu_weave.engine.vllm import moe_layer as vllm_moe_layer

    return Backend(vllm_moe_layer.find_moe_layers, lambda device: device)
