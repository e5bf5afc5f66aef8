"""Masks for sampling."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator


@operator("npu_top_k_top_p(Tensor logits, Tensor? p=None, Tensor? k=None) -> Tensor")
def npu_top_k_top_p(logits: torch.Tensor, p: torch.Tensor | None, k: torch.Tensor | None) -> torch.Tensor:
    """Logits ``[B, vocabulary]``, with -inf for all but the k largest and all outside the nucleus of probability p.

    The nucleus is taken among the k largest: from the least probable on, tokens go as long as what goes has at most
    probability ``1 - p``; the most probable one stays.
    """
    check(logits.dim() == 2, "logits", f"[B, vocabulary], not {tuple(logits.shape)}")
    batch, vocabulary = logits.shape
    ordered, index = logits.float().sort(dim=-1, stable=True)
    if k is not None:
        right = k.dtype == torch.int32 and tuple(k.shape) == (batch,)
        check(right, "k", f"int32 [{batch}], not {k.dtype} {tuple(k.shape)}")
        kept = k.long().clamp(max=vocabulary)
        kept = torch.where(kept > 0, kept, vocabulary)
        least = ordered.gather(1, (vocabulary - kept)[:, None])
        ordered = ordered.masked_fill(ordered < least, float("-inf"))
    if p is not None:
        check(tuple(p.shape) == (batch,), "p", f"[{batch}], not {tuple(p.shape)}")
        gone = ordered.softmax(-1).cumsum(-1) <= 1 - p.float()[:, None]
        gone[:, -1] = False
        ordered = ordered.masked_fill(gone, float("-inf"))
    return torch.empty_like(ordered).scatter_(1, index, ordered).to(logits.dtype)
