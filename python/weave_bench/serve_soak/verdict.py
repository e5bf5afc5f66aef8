"""Each answer held to the contents its request may have met."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from weave_bench.serve_soak.truth import Truth
from weave_lab.demo.traffic import Reply

EXACT, NEAR_TIE, STALE, WRONG = "exact", "near tie", "other revision", "wrong"
TIE = 0.1
"""Two tokens whose log-probabilities differ by less may change places when sums are rounded otherwise."""


def judge(reply: Reply, prompt: str, met: Collection[str], others: Collection[str], truth: Truth) -> str:
    """What an answer is.

    Args:
        met: contents that the request may have met.
        others: contents that it must not be answered by.

    Returns:
        EXACT; NEAR_TIE, it leaves the reference where two tokens are about as likely; STALE, it is the answer of one of
        `others`; WRONG.
    """
    meant = [each for content in met for each in truth.answers[content][prompt]]
    if any(reply.tokens == each.tokens for each in meant):
        return EXACT
    if any(reply.tokens == each.tokens for content in others for each in truth.answers[content][prompt]):
        return STALE
    return NEAR_TIE if any(_leaves_at_a_tie(reply, each) for each in meant) else WRONG


def _leaves_at_a_tie(reply: Reply, reference: Reply) -> bool:
    """Whether both are the same up to a token, and there about as likely."""
    at = _first_difference(reply.tokens, reference.tokens)
    if at >= min(len(reply.tokens), len(reference.tokens)):
        return False
    pairs = list(zip(reply.logprobs[: at + 1], reference.logprobs[: at + 1], strict=True))
    return all(abs(ours - theirs) < TIE for ours, theirs in pairs)


def _first_difference(ones: Sequence[int], others: Sequence[int]) -> int:
    pairs = enumerate(zip(ones, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ones), len(others)))
