"""Which of a step's tokens a rank dispatches, after they were padded and split."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.ops.fused_moe.prepare_finalize import PrepareAndFinalizeWithAll2All, PrepareAndFinalizeWithMC2


class Share(NamedTuple):
    """Which of a step's tokens a rank has: the first, and how many the step has, padding included."""

    first: int
    of: int


def share_of(prepared: Any, tokens: int) -> Share:
    """The share of a step's tokens that a rank is about to dispatch, after ``prepare`` padded and split them.

    Args:
        prepared: the method's ``PrepareAndFinalize``.
        tokens: how many the rank has.
    """
    if not isinstance(prepared, PrepareAndFinalizeWithAll2All):
        return Share(0, tokens)
    ranks, rank = prepared.tp_size, prepared.tp_rank
    if prepared.replace_allreduce:  # sequence parallelism: the tokens came in equal shares
        return Share(rank * tokens, ranks * tokens)
    if isinstance(prepared, PrepareAndFinalizeWithMC2):
        total = _EXTRA_CTX.padded_num_tokens
    else:
        total = max(prepared.num_tokens, ranks)
    # as torch.tensor_split: the first ranks have one more where shares are not equal
    return Share(rank * (total // ranks) + min(rank, total % ranks), total)
