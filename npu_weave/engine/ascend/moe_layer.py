"""The port to one MoE layer of vllm-ascend: weights, packing, rebinding, rerouting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.engine.ascend import dispatch, fused_gating, npu, weight_forms
from npu_weave.engine.ascend.fused_gating import FusedGate
from npu_weave.engine.ascend.limits import row_limit
from npu_weave.engine.ascend.token_share import slots_in_apply
from npu_weave.engine.ascend.weight_forms import WeightForm
from npu_weave.engine.vllm.backend import in_layer_order, index_in
from npu_weave.errors import UnsupportedError
from npu_weave.experts.assembly import share_of, trial_expert
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import Routing, RowLimit
from npu_weave.memory import npu_tensor
from npu_weave.memory.npu_tensor import NpuFormat

_WEIGHTS = ("w13_weight", "w2_weight")


class AscendMoELayer:
    """`MoELayerPort` over the module that owns a layer's expert weights, processed for the grouped matmul.

    That module is the layer itself in vllm-ascend 0.23 (`AscendFusedMoE`) and its `RoutedExperts` later. It keeps
    tensors of the base experts' shape, views into the virtual tensors; the whole tensors reach the kernels at dispatch
    (`dispatch`). What FRACTAL_NZ tensors hold is moved as their blocks, see `memory.npu_tensor`.

    Attributes:
        form: in which the weights are.
        gating_is_fused: None; it is settled at the first step, see `fused_gating`.
    """

    gating_is_fused = None

    def __init__(
        self, name: str, index: int, experts: Any, expert_map: torch.Tensor | None, config: VllmConfig
    ) -> None:
        self.name = name
        self.index = index
        self._experts = experts
        moe = experts.moe_config
        self._placement = ExpertPlacement(moe.ep_size, moe.ep_rank)
        self._geometry = MoEGeometry.from_config(config.model_config.hf_config.to_dict())
        self.num_experts = self._geometry.num_experts
        self._share = share_of(*((1, 0) if moe.ep_size > 1 else (moe.tp_size, moe.tp_rank)))
        self._limit = row_limit(moe.ep_size, mc2=dispatch.may_use_mc2(config))
        # whoever asked for the ids of experts is not to be given rows
        self._returns_ids = bool(getattr(config.model_config, "enable_return_routed_experts", False))
        self.form = self._known_form(expert_map)
        self._kernel_shapes = {each: (*self._tensor(each).shape[1:],) for each in self.form.fields}
        self._formats = {each: npu_tensor.format_of(self._tensor(each)) for each in self.form.fields}
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
        """`MoELayerPort.weights`: this rank's share of what `WeightForm.fields` names, in the order of its memory."""
        return {name: npu_tensor.memory_of(self._tensor(name)) for name in self.form.fields}

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """`MoELayerPort.pack`: what vllm-ascend's own processing gives (`check_processing`), on the host."""
        return self.form.processed(self.form.stored(experts, self._share))

    def check_processing(self, config: VllmConfig) -> None:
        """`weight_forms.check_processing` with an expert of this layer's sizes."""
        geometry = self._geometry
        trial = trial_expert(geometry.hidden_size, geometry.moe_intermediate_size, geometry.dtype)
        weight_forms.check_processing(self.form, self._experts, self._share, trial, config)

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """`MoELayerPort.rebind`: a Parameter stays the object it is, over the base experts' rows of `tensor`."""
        self._rows[name] = tensor
        base = self._declared(name, tensor[: self.placement.share(self.num_experts)])
        held = getattr(self._experts, name)
        if isinstance(held, nn.Parameter):
            held.data = base
        else:
            setattr(self._experts, name, base)

    def insert_routing(self, routing: Routing) -> None:
        """`MoELayerPort.insert_routing`: from now on dispatch finds this layer by its weights."""
        whole = {field: self._declared(name, self._rows[name]) for name, field in self.form.fields.items()}
        gate = None
        if not self._returns_ids:
            gate = FusedGate(self.name, self.num_experts, routing, partial(slots_in_apply, routing))
            fused_gating.listen(self._experts.quant_method, self._experts, gate)
        self._routed = dispatch.RoutedLayer(whole, routing, self.placement, gate)
        dispatch.register(self._routed)

    def check_seated(self) -> None:
        """`EngineMoELayer.check_seated`: of the tensors that the module owns."""
        for name, rows in self._rows.items():
            npu_tensor.check_seated(self._tensor(name), rows)

    def _tensor(self, name: str) -> torch.Tensor:
        found: torch.Tensor = getattr(self._experts, name).data
        return found

    def _declared(self, name: str, memory: torch.Tensor) -> torch.Tensor:
        """Rows as the kernels are to see them."""
        if self._formats[name] is NpuFormat.ND:
            return memory
        shape = (memory.shape[0], *self._kernel_shapes[name])
        return npu_tensor.declare(memory, shape, memory.dtype, self._formats[name])

    def _known_form(self, expert_map: torch.Tensor | None) -> WeightForm:
        """The form of the weights.

        Raises:
            UnsupportedError: LAYER_UNSUPPORTED, it is not known, or the layer is not as it must be.
        """
        form, share = weight_forms.form_of(self._experts), self.placement.share(self.num_experts)
        problem = None
        if form is None:
            method = self._experts.quant_method
            problem = f"expert weights of kind {type(getattr(method, 'quant_method', method)).__name__}"
        elif self._experts.moe_config.has_bias:
            problem = "experts with biases"
        elif self.num_experts % self.placement.ranks:
            problem = f"{self.num_experts} experts on {self.placement.ranks} ranks, in unequal shares"
        elif self._experts.w13_weight.shape[0] != share:
            problem = f"{self._experts.w13_weight.shape[0]} expert rows for {share} routed experts"
        elif expert_map is not None and expert_map.tolist() != self._linear_map():
            problem = "experts placed in another order than theirs"
        if problem or form is None:
            raise UnsupportedError(
                "LAYER_UNSUPPORTED",
                self.name,
                expected="routed experts, unquantised or W8A8_DYNAMIC, in order and in equal shares on the ranks",
                got=str(problem),
                remedy="serve a model of a supported type in one of these forms, without expert load balancing",
            )
        return form

    def _linear_map(self) -> list[int]:
        """The expert map that `ExpertPlacement` means: place on this rank, -1 for others' experts."""
        held = self.placement.held(range(self.num_experts), self.num_experts)
        place = {expert: position for position, expert in enumerate(held)}
        return [place.get(expert, -1) for expert in range(self.num_experts)]


def find_moe_layers(model: nn.Module, vllm_config: VllmConfig) -> list[AscendMoELayer]:
    """The MoE layers of `model`, in layer order.

    Raises:
        UnsupportedError: LAYER_UNSUPPORTED, a layer's form is not known; NO_MOE_LAYERS, there is none;
            WEIGHT_PROCESSING, vllm-ascend lays weights out another way.
    """
    npu.load_operators()
    layers = []
    for name, module in model.named_modules():
        if all(isinstance(getattr(module, weight, None), nn.Parameter) for weight in _WEIGHTS):
            index = index_in(name)
            layers.append(AscendMoELayer(name, index, module, _expert_map(model, name), vllm_config))
    ordered = in_layer_order(layers, model)
    # one layer of each form: the others of it have the same sizes
    for layer in {type(each.form): each for each in ordered}.values():
        layer.check_processing(vllm_config)
    return ordered


def _expert_map(model: nn.Module, name: str) -> torch.Tensor | None:
    """The map that the layer dispatches with: of the runner around the experts, or of the layer itself."""
    for owner in (model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)):
        for attribute in ("_expert_map", "ascend_expert_map"):
            found = getattr(owner, attribute, None)
            if isinstance(found, torch.Tensor):
                return found
    return None
