"""How many experts vllm-ascend's kernels take (documentation of CANN's operators)."""

from __future__ import annotations

from npu_weave.experts.port import RowLimit

GROUPED_MATMUL_GROUPS = 1024
"""Groups of one grouped matmul: the rows of one rank."""
INIT_ROUTING_EXPERTS = 10240
"""Experts of MoeInitRouting: the rows of all ranks."""
MC2_EXPERTS = 1024
"""Experts of MoeDistributeDispatch: the rows of all ranks."""


def row_limit(ranks: int, *, mc2: bool) -> RowLimit:
    """The tightest limit with experts on `ranks` ranks.

    Args:
        mc2: whether tokens may be dispatched with MC2.
    """
    limits = [RowLimit(GROUPED_MATMUL_GROUPS, f"a grouped matmul takes {GROUPED_MATMUL_GROUPS} groups")]
    if ranks > 1:
        limits.append(
            RowLimit(INIT_ROUTING_EXPERTS // ranks, f"routing takes {INIT_ROUTING_EXPERTS} experts over {ranks} ranks")
        )
        if mc2:
            limits.append(RowLimit(MC2_EXPERTS // ranks, f"MC2 takes {MC2_EXPERTS} experts over {ranks} ranks"))
    return min(limits)
