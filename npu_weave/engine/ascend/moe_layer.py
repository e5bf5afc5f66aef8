"""The port to one MoE layer of vllm-ascend: weights, packing, rebinding, rerouting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.engine.ascend import dispatch, npu
from npu_weave.engine.ascend.limits import row_limit
from npu_weave.engine.vllm.backend import in_layer_order, index_in
from npu_weave.errors import UnsupportedError
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import Routing, RowLimit

_WEIGHTS = ("w13_weight", "w2_weight")
_UNQUANTISED = "AscendUnquantizedFusedMoEMethod"


class AscendMoELayer:
    """`MoELayerPort` over the module that owns a layer's expert weights, processed for the grouped matmul.

    That module is the layer itself in vllm-ascend 0.23 (`AscendFusedMoE`) and its `RoutedExperts` later. It keeps
    parameters of the base experts' shape, views into the virtual tensors; the whole tensors reach the kernels at
    dispatch (`dispatch`).

    Attributes:
        gating_is_fused: False; the engine's gating stays, its ids are rerouted.
    """

    gating_is_fused = False

    def __init__(
        self, name: str, index: int, experts: Any, expert_map: torch.Tensor | None, config: VllmConfig
    ) -> None:
        self.name = name
        self.index = index
        self._experts = experts
        self._config = config
        moe = experts.moe_config
        self._placement = ExpertPlacement(moe.ep_size, moe.ep_rank)
        self.num_experts = MoEGeometry.from_config(config.model_config.hf_config.to_dict()).num_experts
        self._slice = (1, 0) if moe.ep_size > 1 else (moe.tp_size, moe.tp_rank)
        self._limit = row_limit(moe.ep_size, mc2=dispatch.may_use_mc2(config))
        self._refuse_unknown_forms(expert_map)
        self._rows: dict[str, torch.Tensor] = {}

    @property
    def placement(self) -> ExpertPlacement:
        """Where the layer's experts lie."""
        return self._placement

    @property
    def row_limit(self) -> RowLimit:
        """`MoELayerPort.row_limit`: `limits`."""
        return self._limit

    def weights(self) -> Mapping[str, torch.Tensor]:
        """`MoELayerPort.weights`: ``w13_weight [M, H, 2 I]`` and ``w2_weight [M, I, H]``, this rank's share."""
        return {name: getattr(self._experts, name) for name in _WEIGHTS}

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """`MoELayerPort.pack`, by vllm-ascend's own weight processing of a module that holds these experts only."""
        staging: Any = nn.Module()
        dtype = self._experts.w13_weight.dtype
        w13 = [torch.cat([self._share(expert.gate, 0), self._share(expert.up, 0)]) for expert in experts]
        w2 = [self._share(expert.down, 1) for expert in experts]
        staging.w13_weight = nn.Parameter(torch.stack(w13).to(dtype), requires_grad=False)
        staging.w2_weight = nn.Parameter(torch.stack(w2).to(dtype), requires_grad=False)
        with set_current_vllm_config(self._config):
            self._experts.quant_method.process_weights_after_loading(staging)
        return {name: getattr(staging, name).data for name in _WEIGHTS}

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """`MoELayerPort.rebind`: the Parameter object stays, over the base experts' rows of `tensor`."""
        self._rows[name] = tensor
        getattr(self._experts, name).data = tensor[: self.placement.share(self.num_experts)]

    def insert_routing(self, routing: Routing) -> None:
        """`MoELayerPort.insert_routing`: from now on dispatch finds this layer by its weights."""
        w13, w2 = (self._rows[name] for name in _WEIGHTS)
        self._routed = dispatch.RoutedLayer(w13, w2, routing, self.placement)
        dispatch.register(self._routed)

    def _share(self, tensor: torch.Tensor, dimension: int) -> torch.Tensor:
        """This rank's slice of an expert's matrix along the intermediate dimension."""
        ranks, rank = self._slice
        return tensor.chunk(ranks, dimension)[rank]

    def _refuse_unknown_forms(self, expert_map: torch.Tensor | None) -> None:
        method, share = self._experts.quant_method, self.placement.share(self.num_experts)
        problem = None
        if type(method).__name__ != _UNQUANTISED:  # its module differs between releases
            problem = f"expert weights of kind {type(method).__name__}"
        elif self._experts.moe_config.has_bias:
            problem = "experts with biases"
        elif self.num_experts % self.placement.ranks:
            problem = f"{self.num_experts} experts on {self.placement.ranks} ranks, in unequal shares"
        elif self._experts.w13_weight.shape[0] != share:
            problem = f"{self._experts.w13_weight.shape[0]} expert rows for {share} routed experts"
        elif expert_map is not None and expert_map.tolist() != self._linear_map():
            problem = "experts placed in another order than theirs"
        if problem:
            raise UnsupportedError(
                "LAYER_UNSUPPORTED",
                self.name,
                expected="plain routed experts, in order and in equal shares on the ranks",
                got=problem,
                remedy="serve an unquantised model of a supported type, without expert load balancing",
            )

    def _linear_map(self) -> list[int]:
        """The expert map that `ExpertPlacement` means: place on this rank, -1 for others' experts."""
        held = self.placement.held(range(self.num_experts), self.num_experts)
        place = {expert: position for position, expert in enumerate(held)}
        return [place.get(expert, -1) for expert in range(self.num_experts)]


def find_moe_layers(model: nn.Module, vllm_config: VllmConfig) -> list[AscendMoELayer]:
    """The MoE layers of `model`, in layer order.

    Raises:
        UnsupportedError: LAYER_UNSUPPORTED, a layer's form is not known; NO_MOE_LAYERS, there is none.
    """
    npu.load_operators()
    layers = []
    for name, module in model.named_modules():
        if all(isinstance(getattr(module, weight, None), nn.Parameter) for weight in _WEIGHTS):
            index = index_in(name)
            layers.append(AscendMoELayer(name, index, module, _expert_map(model, name), vllm_config))
    return in_layer_order(layers, model)


def _expert_map(model: nn.Module, name: str) -> torch.Tensor | None:
    """The map that the layer dispatches with: of the runner around the experts, or of the layer itself."""
    for owner in (model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)):
        for attribute in ("_expert_map", "ascend_expert_map"):
            found = getattr(owner, attribute, None)
            if isinstance(found, torch.Tensor):
                return found
    return None
