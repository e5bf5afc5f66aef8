"""Which tokens a rank dispatches, after they were padded, split and gathered, and the slots of these."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.ops.fused_moe.prepare_finalize import PrepareAndFinalizeWithAll2All, PrepareAndFinalizeWithMC2

from npu_weave.engine.ascend.data_parallel import slots_of_all_ranks
from npu_weave.experts.port import Routing


class Share(NamedTuple):
    """Which of a step's tokens a rank has: the first, and how many the step has, padding included."""

    first: int
    of: int


def slots_in_apply(routing: Routing, tokens: int) -> torch.Tensor:
    """`dispatched_slots` by the communication method of the step in hand."""
    return dispatched_slots(_EXTRA_CTX.moe_comm_method.prepare_finalize, routing, tokens)


def dispatched_slots(prepared: Any, routing: Routing, tokens: int) -> torch.Tensor:
    """The slots of the tokens that a rank is about to dispatch, int32 ``[>= tokens]``, after ``prepare``.

    Args:
        prepared: the method's ``PrepareAndFinalize``.
        tokens: how many the rank has.

    Raises:
        IntegrityError: TOKENS_MISALIGNED.
    """
    if isinstance(prepared, PrepareAndFinalizeWithAll2All):
        share = _share_of(prepared, tokens)
        return routing.slots(first=share.first, of=share.of)
    ranks = prepared.moe_config.dp_size
    # AllGather: every data parallel rank's tokens, padded to the height of the longest
    own = routing.slots(of=tokens // ranks)
    return own if ranks == 1 else slots_of_all_ranks(routing.token_slots, tokens // ranks)


def _share_of(prepared: Any, tokens: int) -> Share:
    """The share of its step's tokens that a rank keeps, of those that its tensor parallel group has."""
    ranks, rank = prepared.tp_size, prepared.tp_rank
    if prepared.replace_allreduce:  # sequence parallelism: the tokens came in equal shares
        return Share(rank * tokens, ranks * tokens)
    if isinstance(prepared, PrepareAndFinalizeWithMC2):
        total = _EXTRA_CTX.padded_num_tokens
    else:
        total = max(prepared.num_tokens, ranks)
    # as torch.tensor_split: the first ranks have one more where shares are not equal
    return Share(rank * (total // ranks) + min(rank, total % ranks), total)
