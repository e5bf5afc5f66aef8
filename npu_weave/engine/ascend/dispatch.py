"""Rows instead of experts for vllm-ascend's dispatchers.

Every communication method (AllGather, AlltoAll, MC2) of every version goes through ``MoECommMethod.fused_experts`` with
one frozen record of ids, weights and expert map. There a layer is known by the address of its weights; ids become rows,
weights the whole virtual tensors, and counts those of rows. It is after the random ids of profile runs, which therefore
stay with base experts, and after tokens were padded and split, so slots follow them.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from weakref import WeakValueDictionary

import torch
from vllm.config import VllmConfig
from vllm_ascend.ascend_forward_context import MoECommType, select_moe_comm_method

from npu_weave.engine.ascend.token_share import share_of
from npu_weave.experts.placement import ExpertPlacement
from npu_weave.experts.port import Routing


class RoutedLayer:
    """One layer at dispatch.

    Args:
        w13: ``[rows, H, 2 I]``, the virtual tensor.
        w2: ``[rows, I, H]``.
    """

    def __init__(self, w13: torch.Tensor, w2: torch.Tensor, routing: Routing, placement: ExpertPlacement) -> None:
        self.w13, self.w2 = w13, w2
        self._routing = routing
        self._placement = placement
        self._rows = w13.shape[0]
        self._expert_map: torch.Tensor | None = None
        if placement.ranks > 1:
            own = torch.full((placement.ranks, self._rows), -1, dtype=torch.int32)
            own[placement.rank] = torch.arange(self._rows, dtype=torch.int32)
            self._expert_map = own.reshape(-1).to(w13.device)

    def widen(self, method: Any, asked: Any) -> Any:
        """`asked` (``MoEFusedExpertsInput``) with rows of this layer. Sets the counts of `method`'s dispatcher."""
        self._set_counts(method.token_dispatcher)
        share = share_of(method.prepare_finalize, asked.topk_ids.shape[0])
        routing = asked.routing
        if self._expert_map is not None:
            routing = dataclasses.replace(routing, expert_map=self._expert_map)
        return dataclasses.replace(
            asked,
            topk_ids=self._routing.reroute(asked.topk_ids, first=share.first, of=share.of),
            weights=dataclasses.replace(asked.weights, w1=self.w13, w2=self.w2),
            routing=routing,
        )

    def _set_counts(self, dispatcher: Any) -> None:
        ranks, rows = self._placement.ranks, self._rows
        if hasattr(dispatcher, "num_experts_local"):  # AllGather
            dispatcher.num_experts_local = rows
        elif getattr(dispatcher, "num_local_experts", rows) != rows:  # AlltoAll; MC2 counts by the expert map
            dispatcher.num_experts, dispatcher.num_local_experts = ranks * rows, rows
            places = torch.arange(rows, dtype=torch.int32, device=self.w13.device)
            dispatcher.expert_ids_per_ep_rank = places.repeat(ranks)
            first = self._placement.rank * rows
            dispatcher.local_expert_indices = list(range(first, first + rows))


# an engine that is gone leaves nothing here that another's weights could be taken for
_layers: WeakValueDictionary[int, RoutedLayer] = WeakValueDictionary()


def register(layer: RoutedLayer) -> None:
    """Have the layer whose weights begin where `layer`'s do dispatched by it, as long as somebody keeps `layer`."""
    _layers[layer.w13.data_ptr()] = layer


def widened(method: Any, asked: Any) -> Any:
    """What `method` is to compute when it is asked for `asked`: the same, for a layer that nobody registered."""
    weights = asked.weights.w1
    layer = _layers.get(weights.data_ptr()) if isinstance(weights, torch.Tensor) else None
    return asked if layer is None else layer.widen(method, asked)


def may_use_mc2(vllm_config: VllmConfig) -> bool:
    """Whether vllm-ascend dispatches small steps with MC2 at these settings."""
    return bool(select_moe_comm_method(1, vllm_config) == MoECommType.MC2)
