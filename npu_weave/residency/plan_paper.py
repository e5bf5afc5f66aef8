"""The memory figure of the ExpertWeave paper (arXiv 2508.17624), computed beside what it prints.

One 64 GB device, DeepSeek-V2-Lite's shape in bfloat16, the adapters gate-math, gate-intent and token-math added in this
order. The paper tells their mean number of tuned experts a layer; totals follow from that, the spread over layers is
made up (`footprint_synthetic`). One constant is fitted: what an engine uses beside weights and KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from npu_weave.residency.footprint_synthetic import synthetic_adapters
from npu_weave.residency.plan import Budget, Design, NamedSets, Plan, make_plan
from npu_weave.residency.plan_base import base_from_config

GIB = 1 << 30

PAPER_MODEL: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "deepseek_v2",
        "dtype": "bfloat16",
        "vocab_size": 102400,
        "hidden_size": 2048,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "intermediate_size": 10944,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "num_attention_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
    }
)
"""DeepSeek-V2-Lite, as its published config has it."""

PAPER_KINDS = ("gate-math", "gate-intent", "token-math")
PAPER_MEMORY = 64 * GIB
PAPER_UTILIZATION = 0.9
PAPER_E_MAX = 13
"""Of all ten adapters, for the fragmentation factor. The figure's padding is that of its three adapters: 12."""

_WEIGHTS: tuple[tuple[Design, int, float], ...] = (
    ("merged", 1, 29.3),
    ("merged", 2, 58.6),
    ("padded", 1, 34.0),
    ("padded", 2, 39.0),
    ("padded", 3, 44.3),
    ("mapped", 1, 32.1),
    ("mapped", 2, 36.2),
    ("mapped", 3, 38.7),
)
_TOKENS: tuple[tuple[Design, int, int], ...] = (("merged", 1, 810_000), ("mapped", 2, 572_000), ("mapped", 3, 477_000))
_FRAGMENTATION = 1.51


@dataclass(frozen=True)
class Comparison:
    """One figure.

    Attributes:
        quantity: weights in GiB, KV cache in tokens, or padding over exact need.
        design: whose.
        adapters: how many are loaded.
        computed: by us.
        published: in the paper.
    """

    quantity: Literal["weights", "kv_tokens", "fragmentation"]
    design: Design
    adapters: int
    computed: float
    published: float

    @property
    def deviation(self) -> float:
        """Of the computed figure, relative to the published one."""
        return self.computed / self.published - 1


@dataclass(frozen=True)
class PaperFigures:
    """All figures, and the constant fitted to the three of the KV cache."""

    overhead_bytes: int
    figures: tuple[Comparison, ...]


def paper_plan(overhead_bytes: int = 0) -> Plan:
    """The plan behind the paper's memory figure: its device, model and three adapters.

    Args:
        overhead_bytes: non-KV overhead of an engine.
    """
    base = base_from_config(PAPER_MODEL, title="DeepSeek-V2-Lite")
    known = dict(synthetic_adapters(base.geometry))
    kinds: list[NamedSets] = [(name, known[name]) for name in PAPER_KINDS]
    budget = Budget(PAPER_MEMORY, PAPER_UTILIZATION, overhead_bytes, base.max_model_len)
    return make_plan(base, kinds, budget)


def paper_figures() -> PaperFigures:
    """Every figure of the paper's memory comparison that arithmetic can give."""
    bare = paper_plan()
    published = [(bare.outcome(design, count).left_bytes, tokens) for design, count, tokens in _TOKENS]
    # The mean over the three of what weights and cache leave unused.
    overhead = sum(left - tokens * bare.base.kv_token_bytes for left, tokens in published) // len(published)
    plan = paper_plan(overhead)
    figures = [
        *(
            Comparison("weights", design, count, plan.outcome(design, count).weights_bytes / GIB, gib)
            for design, count, gib in _WEIGHTS
        ),
        *(
            Comparison("kv_tokens", design, count, plan.outcome(design, count).kv_tokens, tokens)
            for design, count, tokens in _TOKENS
        ),
        Comparison("fragmentation", "padded", 10, _fragmentation(plan), _FRAGMENTATION),
    ]
    return PaperFigures(overhead, tuple(figures))


def _fragmentation(plan: Plan) -> float:
    all_ten = make_plan(plan.base, synthetic_adapters(plan.base.geometry), plan.budget, e_max=PAPER_E_MAX)
    return all_ten.need(all_ten.count).fragmentation
