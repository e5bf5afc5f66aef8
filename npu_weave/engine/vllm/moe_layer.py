"""The port to one MoE layer of vLLM (`MoERunner`): weights, packing, rebinding, rerouting."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.engine.vllm.backend import in_layer_order, index_in
from npu_weave.engine.vllm.fused_gating import fusable_gating
from npu_weave.errors import UnsupportedError
from npu_weave.experts.assembly import assembled, share_of, trial_expert
from npu_weave.experts.placement import ONE_RANK
from npu_weave.experts.port import Routing, RowLimit
from npu_weave.memory.npu_tensor import check_seated
from npu_weave.memory.row_bytes import copy_matrices, same_bits
from npu_weave.turns import give_way

_INT32_LIMIT = 2**31
_PROCESSED_BYTES = 24 << 20
"""Processed at once, between two turns of the steps; vLLM's processing takes 15 to 40 ms for so many."""
_WEIGHTS = ("w13_weight", "w2_weight")


class VllmMoELayer:
    """`MoELayerPort` over a `MoERunner` whose weights have been processed for its kernel.

    An expert that vLLM loads and processes by its own code at start-up decides how others are packed: where what
    comes of it is just what the checkpoint holds (`assembled`), so they are; else vLLM's own
    ``process_weights_after_loading`` (padding, kernel layout) runs on a staging copy, and its own weight loader (tensor
    parallel slice) if even that differs. So the layout is right for any unquantised backend.

    Attributes:
        gating_is_fused: whether one operator gates and reroutes here (`fused_gating`).
    """

    def __init__(self, name: str, index: int, runner: MoERunner, vllm_config: VllmConfig) -> None:
        self.name = name
        self.index = index
        self._runner = runner
        self._vllm_config = vllm_config
        self._experts: Any = runner.routed_experts
        self.num_experts: int = self._experts.global_num_experts
        self._refuse_unknown_forms()
        # what staging copies start from: the layer as it was before its weights moved
        self._pristine = copy.copy(self._experts)
        self.gating_is_fused = False
        self._bound: dict[str, torch.Tensor] = {}
        parallel = self._experts.moe_config
        self._share = share_of(parallel.tp_size, parallel.tp_rank)
        self._loaded_as_assembled = self._kept_as_loaded = False

    placement = ONE_RANK

    @property
    def row_limit(self) -> RowLimit:
        """The CPU kernel computes ``row * elements of a row`` in int32: beyond that, results are silently wrong."""
        shape = self._experts.w13_weight.shape
        return RowLimit((_INT32_LIMIT - 1) // (shape[1] * shape[2]) + 1, "its kernel addresses rows with 32 bits")

    def weights(self) -> Mapping[str, torch.Tensor]:
        """`MoELayerPort.weights`: ``w13_weight [M, 2 I, H]`` and ``w2_weight [M, H, I]`` in kernel layout."""
        return {name: getattr(self._experts, name).data for name in _WEIGHTS}

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """`MoELayerPort.pack`."""
        few = max(1, _PROCESSED_BYTES // sum(matrix.nbytes for matrix in experts[0]))
        if self._kept_as_loaded or len(experts) <= few:
            return self._made(experts)
        packed: dict[str, torch.Tensor] = {}
        for begin in range(0, len(experts), few):
            chosen = experts[begin : begin + few]
            for name, part in self._made(chosen).items():
                if name not in packed:
                    packed[name] = fresh_tensor((len(experts), *part.shape[1:]), part.dtype)
                place = packed[name][begin : begin + len(chosen)]
                copy_matrices([place.flatten(1)], [part.flatten(1)])
            give_way()
        return packed

    def choose_packing(self, trial: ExpertTensors) -> None:
        """Compare what vLLM makes of any expert of the model's sizes with what `assembled` does.

        Before it is called, vLLM's own loader and processing pack.
        """
        loaded, ours = self._loaded([trial]), assembled([trial], self._share)
        # processing may work in place
        processed = self._processed({name: weight.clone() for name, weight in loaded.items()})
        self._loaded_as_assembled = _same(loaded, ours)
        self._kept_as_loaded = _same(processed, loaded)

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        """`MoELayerPort.rebind`: the Parameter object stays, its storage changes."""
        getattr(self._experts, name).data = self._bound[name] = tensor

    def check_seated(self) -> None:
        """`EngineMoELayer.check_seated`."""
        for name, tensor in self._bound.items():
            check_seated(getattr(self._experts, name), tensor)

    def insert_routing(self, routing: Routing) -> None:
        """`MoELayerPort.insert_routing`, on this router instance only: after gating and the conversion of ids, or all
        in one operator where that has vLLM's own answers."""
        router: Any = self._runner.router
        gate = router._select_experts
        device = self._experts.w13_weight.device
        fused = fusable_gating(router, self.num_experts, device, self._experts.params_dtype)
        self.gating_is_fused = fused is not None

        def select_experts(
            hidden_states: torch.Tensor,
            router_logits: torch.Tensor,
            topk_indices_dtype: torch.dtype | None = None,
            **others: Any,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if fused is not None and router.capture_fn is None and topk_indices_dtype in (None, torch.int32):
                return routing.gate(router_logits, fused)
            weights, ids = gate(hidden_states, router_logits, topk_indices_dtype, **others)
            return weights, routing.reroute(ids)

        router._select_experts = select_experts

    def _made(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        loaded = assembled(experts, self._share) if self._loaded_as_assembled else self._loaded(experts)
        return loaded if self._kept_as_loaded else self._processed(loaded)

    def _loaded(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        """What vLLM's own weight loader leaves."""
        with set_current_vllm_config(self._vllm_config):
            staging = self._staging_copy(len(experts))
            for position, expert in enumerate(experts):
                for shard, tensor in (("w1", expert.gate), ("w3", expert.up), ("w2", expert.down)):
                    parameter = staging.w2_weight if shard == "w2" else staging.w13_weight
                    staging.weight_loader(parameter, tensor, "weight", shard_id=shard, expert_id=position)
        return {name: getattr(staging, name).data for name in _WEIGHTS}

    def _processed(self, loaded: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What vLLM's own processing makes of that. May change `loaded`."""
        with set_current_vllm_config(self._vllm_config):
            staging = self._staging_copy(len(loaded[_WEIGHTS[0]]))
            for name, weight in loaded.items():
                getattr(staging, name).data = weight
            staging.quant_method.process_weights_after_loading(staging)
        return {name: getattr(staging, name).data for name in _WEIGHTS}

    def _staging_copy(self, count: int) -> Any:
        """A `RoutedExperts` of `count` experts with fresh, unprocessed parameters. Shares no weight with the layer."""
        staging: Any = copy.copy(self._pristine)
        staging.__dict__ = dict(self._pristine.__dict__)
        staging._parameters, staging._buffers, staging._modules = {}, {}, {}
        staging.expert_map_manager = _LocalExperts()
        staging.local_num_experts = staging.global_num_experts = count
        staging._loaded_expert_biases = set()
        staging.quant_method = type(self._experts.quant_method)(self._experts.moe_config)
        staging.quant_method.create_weights(
            layer=staging,
            num_experts=count,
            hidden_size=self._experts.hidden_size,
            intermediate_size_per_partition=self._experts.intermediate_size_per_partition,
            params_dtype=self._experts.params_dtype,
            weight_loader=staging.weight_loader,
            global_num_experts=count,
        )
        return staging

    def _refuse_unknown_forms(self) -> None:
        method = self._experts.quant_method
        kernel = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
        problem = None
        if type(method) is not UnquantizedFusedMoEMethod:
            problem = f"expert weights of kind {type(method).__name__}"
        elif method.is_monolithic:
            problem = "a kernel that routes on its own"
        elif getattr(kernel, "_use_zentorch", False):
            problem = "the zentorch kernel"
        elif self._experts.moe_config.has_bias:
            problem = "experts with biases"
        elif self._experts.w13_weight.shape[0] != self.num_experts:
            problem = f"{self._experts.w13_weight.shape[0]} expert rows for {self.num_experts} routed experts"
        if problem:
            raise UnsupportedError(
                "LAYER_UNSUPPORTED",
                self.name,
                expected="plain routed experts with a modular kernel",
                got=problem,
                remedy="serve an unquantised model of a supported type without expert parallelism",
            )


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and same_bits(one[name].contiguous(), other[name])
        for name in _WEIGHTS
    )


class _LocalExperts:
    """Expert map manager of a staging copy: position i of the copy is expert i."""

    expert_map = None
    expert_mask = None
    routing_tables = None

    def map_global_to_local(self, expert: int) -> int:
        return expert


def find_moe_layers(model: nn.Module, vllm_config: VllmConfig) -> list[VllmMoELayer]:
    """The MoE layers of `model`, in layer order.

    Raises:
        UnsupportedError: LAYER_UNSUPPORTED, a layer's form is not known; NO_MOE_LAYERS, there is none.
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, MoERunner):
            index = index_in(name)
            layers.append(VllmMoELayer(name, index, module, vllm_config))
    ordered = in_layer_order(layers, model)
    geometry = MoEGeometry.from_config(vllm_config.model_config.hf_config.to_dict())
    trial = trial_expert(geometry.hidden_size, geometry.moe_intermediate_size, geometry.dtype)
    for layer in ordered:
        layer.choose_packing(trial)
    return ordered
