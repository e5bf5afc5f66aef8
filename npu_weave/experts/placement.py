"""Which rank of expert parallelism holds which experts, and how rows are numbered over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExpertPlacement:
    """Base experts lie in equal shares, in order, on the ranks; an adapter's expert on the rank of its base expert.

    Every rank has the same number of rows: its base experts first, adapter rows after them. Rows are numbered through:
    row `r` of rank `k` is row ``k * rows_per_rank + r`` of the layer, which dispatchers call a physical expert. So an
    adapter's expert is dispatched to where the base model's would be, and no rank gets tokens it would not have got.

    Attributes:
        ranks: ranks that share the experts; 1 without expert parallelism.
        rank: this one.
    """

    ranks: int = 1
    rank: int = 0

    def share(self, num_experts: int) -> int:
        """Base experts of each rank; `num_experts` is a multiple of `ranks`."""
        return num_experts // self.ranks

    def rank_of(self, expert: int, num_experts: int) -> int:
        """The rank of base expert `expert`, and of what stands in for it."""
        return expert // self.share(num_experts)

    def held(self, experts: Iterable[int], num_experts: int) -> tuple[int, ...]:
        """Those of `experts` that lie on this rank, in their order."""
        return tuple(expert for expert in experts if self.rank_of(expert, num_experts) == self.rank)

    def base_rows(self, num_experts: int, rows_per_rank: int) -> torch.Tensor:
        """The row of every base expert, int32 ``[num_experts]``."""
        expert, share = torch.arange(num_experts, dtype=torch.int32), self.share(num_experts)
        return expert // share * rows_per_rank + expert % share


ONE_RANK = ExpertPlacement()
"""Every expert on this rank, whole or sliced by tensor parallelism."""
