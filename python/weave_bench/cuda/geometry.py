"""Sizes of the routed MoE layers that are measured, and of the part of one that a GPU holds."""

from __future__ import annotations

from dataclasses import dataclass

from npu_weave.experts.placement import ExpertPlacement
from weave_bench.plain_layer import Geometry


@dataclass(frozen=True)
class Router:
    """Settings of ``gating_reroute``, see `weave_ops.schema`; V3's correction bias is taken as zero."""

    top_k: int
    scoring: str
    renormalize: bool
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    biased: bool = False


@dataclass(frozen=True)
class LayerShape:
    """One MoE layer.

    Attributes:
        name: the model's.
        experts: routed experts of the model.
        hidden: width of the hidden states.
        width: of an expert.
        ranks: of expert parallelism among which the experts are shared; the layer measured is that of rank 0.
    """

    name: str
    experts: int
    hidden: int
    width: int
    router: Router
    ranks: int = 1

    @property
    def share(self) -> int:
        """Base experts on this GPU."""
        return self.experts // self.ranks

    @property
    def placement(self) -> ExpertPlacement:
        """This rank among all."""
        return ExpertPlacement(self.ranks, 0)

    @property
    def rows(self) -> Geometry:
        """What this GPU holds, as a layer of its own."""
        return Geometry(layers=1, experts=self.share, hidden=self.hidden, width=self.width)

    @property
    def row_bytes(self) -> int:
        """Bytes of one expert, bfloat16."""
        return self.rows.expert_bytes

    def describe(self) -> str:
        """For people."""
        part = f", {self.share} of them here (one of {self.ranks} ranks)" if self.ranks > 1 else ""
        return f"hidden {self.hidden}, {self.experts} experts of {self.width}{part}, top-{self.router.top_k}, bfloat16"


DEEPSEEK_V2_LITE = LayerShape("DeepSeek-V2-Lite", 64, 2048, 1408, Router(6, "softmax", False))
DEEPSEEK_V3 = LayerShape("DeepSeek-V3", 256, 7168, 2048, Router(8, "sigmoid", True, 8, 4, 2.5, True), ranks=4)
"""With four ranks, as 256 experts and their adapters' are more than a GPU of 80 GB holds: 88 MB an expert."""
