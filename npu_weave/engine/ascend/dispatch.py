"""Rows instead of experts for vllm-ascend's dispatchers.

Every communication method (AllGather, AlltoAll, MC2) of every version goes through ``MoECommMethod.fused_experts`` with
one frozen record of ids, weights and expert map. There a layer is known by the address of its weights; ids become rows,
weights the whole virtual tensors, and counts those of rows. It is after the random ids of profile runs, which therefore
stay with base experts, and after tokens were padded and split, so slots follow them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from vllm.config import VllmConfig
from vllm_ascend.ascend_forward_context import MoECommType, select_moe_comm_method

from npu_weave.engine.ascend.fused_gating import FusedGate
from npu_weave.engine.ascend.token_share import dispatched_slots
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import Routing


class RoutedLayer:
    """One layer at dispatch.

    Args:
        weights: field of ``MoEWeights`` -> the whole virtual tensor ``[rows, ...]``; ``w1`` and ``w2`` at least.
        gate: chose rows already, if it was asked; None where it never is.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        routing: Routing,
        placement: ExpertPlacement,
        gate: FusedGate | None,
    ) -> None:
        self._weights = dict(weights)
        self._gate = gate
        self._routing = routing
        self._placement = placement
        self._rows = weights["w1"].shape[0]
        self._expert_map: torch.Tensor | None = None
        if placement.ranks > 1:
            own = torch.full((placement.ranks, self._rows), -1, dtype=torch.int32)
            own[placement.rank] = torch.arange(self._rows, dtype=torch.int32)
            self._expert_map = own.reshape(-1).to(weights["w1"].device)

    @property
    def address(self) -> int:
        """Where its weights begin, and those of the base experts."""
        return self._weights["w1"].data_ptr()

    def widen(self, method: Any, asked: Any) -> Any:
        """`asked` (``MoEFusedExpertsInput``) with rows of this layer. Sets the counts of `method`'s dispatcher."""
        self._set_counts(method.token_dispatcher)
        rows = asked.topk_ids
        if self._gate is None or not self._gate.gave(rows):
            slots = dispatched_slots(method.prepare_finalize, self._routing, rows.shape[0])
            rows = self._routing.reroute(rows, slots)
        routing = asked.routing
        if self._expert_map is not None:
            routing = dataclasses.replace(routing, expert_map=self._expert_map)
        return dataclasses.replace(
            asked,
            topk_ids=rows,
            weights=self._whole(asked.weights),
            routing=routing,
        )

    def _whole(self, asked: Any) -> Any:
        """`asked` (``MoEWeights``) with whole tensors; its fields are tensors, or all are lists of one."""
        if not isinstance(asked.w1, list):
            return dataclasses.replace(asked, **self._weights)
        return dataclasses.replace(asked, **{field: [each] for field, each in self._weights.items()})

    def _set_counts(self, dispatcher: Any) -> None:
        ranks, rows = self._placement.ranks, self._rows
        if hasattr(dispatcher, "num_experts_local"):  # AllGather
            dispatcher.num_experts_local = rows
        elif getattr(dispatcher, "num_local_experts", rows) != rows:  # AlltoAll; MC2 counts by the expert map
            dispatcher.num_experts, dispatcher.num_local_experts = ranks * rows, rows
            places = torch.arange(rows, dtype=torch.int32, device=self._weights["w1"].device)
            dispatcher.expert_ids_per_ep_rank = places.repeat(ranks)
            first = self._placement.rank * rows
            dispatcher.local_expert_indices = list(range(first, first + rows))


# an engine that is gone leaves nothing here that another's weights could be taken for
_layers: WeakValueDictionary[int, RoutedLayer] = WeakValueDictionary()


def register(layer: RoutedLayer) -> None:
    """Have the layer whose weights begin where `layer`'s do dispatched by it, as long as somebody keeps `layer`."""
    _layers[layer.address] = layer


def widened(method: Any, asked: Any) -> Any:
    """What `method` is to compute when it is asked for `asked`: the same, for a layer that nobody registered."""
    weights = asked.weights.w1
    if isinstance(weights, list):
        weights = weights[0]
    layer = _layers.get(weights.data_ptr())
    return asked if layer is None else layer.widen(method, asked)


def may_use_mc2(vllm_config: VllmConfig) -> bool:
    """Whether vllm-ascend dispatches small steps with MC2 at these settings."""
    return bool(select_moe_comm_method(1, vllm_config) == MoECommType.MC2)
