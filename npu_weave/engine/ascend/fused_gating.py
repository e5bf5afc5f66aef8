"""Gating and rerouting in one operator, in the place of vllm-ascend's gating operator.

Every method of quantisation chooses experts by ``DeviceOperator.moe_gating_top_k``, wherever that operator takes the
model's settings. Which layer asks is known while its ``apply`` runs. At a layer's first call, which is in the profile
run, both operators answer trial logits with the settings of that call; only if no bit differs is ours used from then
on. The rows that it gave are known again at dispatch by being the same tensor: random ids of profile runs are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.logger import init_logger

from npu_weave.engine.vllm.fused_gating import same_answers
from npu_weave.experts.gating import Gating
from npu_weave.experts.port import Routing

logger = init_logger("vllm.npu_weave.worker")

Operator = Callable[..., tuple[torch.Tensor, torch.Tensor, Any]]
"""``moe_gating_top_k(logits, *, k, k_group, ...)``: weights of the logits' type, int32 ids, and scores on demand."""

_SCORING = {0: "softmax", 1: "sigmoid"}


class FusedGate:
    """The gate of one layer.

    Args:
        slots: of so many tokens as the layer is about to dispatch.
    """

    def __init__(self, name: str, experts: int, routing: Routing, slots: Callable[[int], torch.Tensor]) -> None:
        self._name = name
        self._experts = experts
        self._routing = routing
        self._slots = slots
        self._decided = False
        self._gating: Gating | None = None
        self._rows: torch.Tensor | None = None

    def choose(self, own: Operator, logits: torch.Tensor, settings: dict[str, Any]) -> tuple[Any, Any, None] | None:
        """Weights of the logits' type and int32 rows, ``[tokens, top_k]``; None where vllm-ascend's operator stays.

        Args:
            own: that operator.
            logits: ``[tokens, experts]``.
            settings: it is called with.
        """
        if not self._decided:
            self._decided, self._gating = True, self._fusable(own, logits, settings)
            kind = "one operator" if self._gating else "vllm-ascend's operator, then ours"
            logger.info("npu-weave: gating and rerouting of %s: %s", self._name, kind)
        if self._gating is None:
            return None
        weights, self._rows = self._routing.gate(logits, self._gating, self._slots(logits.shape[0]))
        return weights.to(logits.dtype), self._rows, None

    def gave(self, ids: torch.Tensor) -> bool:
        """Whether `ids` are the rows that were chosen last."""
        return ids is self._rows

    def _fusable(self, own: Operator, logits: torch.Tensor, settings: dict[str, Any]) -> Gating | None:
        gating = _gating_of(settings)
        if gating is None or not gating.served_on(logits.device):
            return None
        base = torch.arange(self._experts, dtype=torch.int32, device=logits.device)[None]

        def ours(trial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weights, ids = gating.gate(trial, torch.zeros_like(trial[:, 0], dtype=torch.int32), base)
            return weights.to(trial.dtype), ids

        def theirs(trial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            bias = settings.get("bias_opt")
            return own(trial, **{**settings, "bias_opt": None if bias is None else bias.to(trial.dtype)})[:2]

        # in float32 as well: what differs there is rounded away in a shorter type most times, and not always
        for dtype in {logits.dtype, torch.float32}:
            if not same_answers(theirs, ours, self._experts, gating.top_k, logits.device, dtype):
                return None
        return gating


def _gating_of(settings: dict[str, Any]) -> Gating | None:
    """What ``moe_gating_top_k`` is asked for, in our operator's terms; None where that has none for it."""
    scoring = _SCORING.get(settings["norm_type"])
    if scoring is None or settings["out_flag"]:
        return None
    bias = settings.get("bias_opt")
    return Gating(
        top_k=settings["k"],
        scoring=scoring,
        renormalize=bool(settings["renorm"]),
        n_group=settings["group_count"],
        topk_group=settings["k_group"],
        routed_scaling_factor=float(settings.get("routed_scaling_factor", 1.0)),
        correction_bias=None if bias is None else bias.float(),
    )


_asking: FusedGate | None = None  # the layer whose ``apply`` is running, on the one thread that runs the model


@contextmanager
def _asked_by(gate: FusedGate) -> Iterator[None]:
    global _asking
    before, _asking = _asking, gate
    try:
        yield
    finally:
        _asking = before


def listen(method: Any, experts: Any, gate: FusedGate) -> None:
    """Have `gate` asked while `method` (``FusedMoEMethodBase``) computes the module `experts`. Mutates `method`."""
    apply = method.apply

    def apply_with_gate(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("layer") is not experts:
            return apply(*args, **kwargs)
        with _asked_by(gate):
            return apply(*args, **kwargs)

    method.apply = apply_with_gate


def gated(own: Operator, logits: torch.Tensor, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What ``moe_gating_top_k`` is to answer."""
    chosen = None if _asking is None else _asking.choose(own, logits, settings)
    return own(logits, **settings) if chosen is None else chosen
