"""The engine settings that a plan comes down to: slots, rows and memory for adapters."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from npu_weave.config import KEY
from npu_weave.residency.footprint_formula import row_shapes
from npu_weave.residency.plan import PAGE_BYTES, Plan, largest


@dataclass(frozen=True)
class EngineSettings:
    """What to start an engine with.

    Attributes:
        max_loras: adapters on the device at once, vLLM's ``--max-loras``.
        adapter_rows: rows for adapters in every MoE layer.
        adapter_memory_bytes: physical memory for adapters, on each rank. However their rows come to lie after loads
            and unloads, they fit in it; that takes more than the pages they need when packed.
        kv_tokens: what the KV cache holds beside that memory, all of it taken.
    """

    max_loras: int
    adapter_rows: int
    adapter_memory_bytes: int
    kv_tokens: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """The settings as arguments of ``vllm serve``."""
        mebibytes = math.ceil(self.adapter_memory_bytes / (1 << 20))
        weave = {"adapter_rows": self.adapter_rows, "adapter_memory": f"{mebibytes}MiB"}
        config = json.dumps({KEY: weave})
        return ("--enable-lora", "--max-loras", str(self.max_loras), "--additional-config", config)


def choose_settings(plan: Plan) -> EngineSettings | None:
    """Settings for the adapters wanted, or for as many of them as fit; None where that is none."""

    def settings(count: int) -> EngineSettings:
        rows = {layer: rows - plan.base.geometry.num_experts for layer, rows in plan.rows(count).items()}
        adapter_rows = max(rows.values())
        # small experts may fit in what the base experts leave of their last pages, and no memory is no setting
        memory = PAGE_BYTES * max(1, sum(_pages_bound(plan, count, adapter_rows) for count in rows.values()))
        weights = plan.outcome("mapped", 0).weights_bytes + memory
        tokens = max(0, plan.budget.left(weights)) // plan.base.kv_token_bytes
        return EngineSettings(count, adapter_rows, memory, tokens)

    count = largest(lambda count: settings(count).kv_tokens >= plan.budget.least_tokens, plan.count)
    return settings(count) if count else None


def _pages_bound(plan: Plan, rows: int, adapter_rows: int) -> int:
    """Most pages beyond the base experts' that `rows` of a layer's `adapter_rows` can need, however they lie."""
    base, pages = plan.base.geometry.num_experts, 0
    for out, inner in row_shapes(plan.base.geometry).values():
        nbytes = out * inner * plan.base.geometry.dtype.itemsize
        all_rows = math.ceil((base + adapter_rows) * nbytes / PAGE_BYTES) - math.ceil(base * nbytes / PAGE_BYTES)
        # a row starts at a multiple of the common divisor, at worst that far before a page's end
        apart = rows * (1 + math.ceil((nbytes - math.gcd(nbytes, PAGE_BYTES)) / PAGE_BYTES))
        pages += min(apart, all_rows)
    return pages
