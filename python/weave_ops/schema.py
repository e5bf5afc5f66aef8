"""What each operator takes and returns: the one definition that all backends implement.

``reroute(Tensor topk_ids, Tensor token_slots, Tensor expert_map) -> Tensor``
    ``out[t, k] = expert_map[token_slots[t], topk_ids[t, k]]``, for each token its expert ids as rows of the weight
    tensor.

    - topk_ids: int32 or int64, ``[T, K]``, any strides; values in ``[0, M)``.
    - token_slots: int32, ``[>= T]``; values in ``[0, slots]``. Entries from T on are not read.
    - expert_map: int32, ``[slots + 1, M]``. Row 0 is the base model's.
    - returns: contiguous ``[T, K]`` of the dtype of topk_ids; a new tensor.

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, and on the CPU IndexError, naming the first such
    token, for a slot or an id outside of expert_map: wrong routing is never served. A GPU cannot raise: there such a
    token gets -1, which is no row, for all its ids, and NaN for all its weights.

``reroute_(Tensor(a!) topk_ids, Tensor token_slots, Tensor expert_map) -> ()``
    The same, written over topk_ids, which a refused call leaves as it was. It returns nothing, because torch.compile
    takes no operator that returns its own argument.

``gating_reroute(Tensor logits, Tensor? correction_bias, int top_k, str scoring, bool renormalize, int n_group,
int topk_group, float routed_scaling_factor, Tensor token_slots, Tensor expert_map) -> (Tensor weights, Tensor ids)``
    A router's choice of experts, and their rows: what every MoE layer does before its experts, in one call.

    - logits: float32, bfloat16 or float16, ``[T, M]``, any strides; computed with in float32.
    - correction_bias: float32 ``[M]`` or None; added to the scores to select by, not to the weights.
    - top_k: experts a token, 1 ... M.
    - scoring: ``softmax`` (over all M) or ``sigmoid``.
    - renormalize: divide the weights of a token by their sum.
    - n_group, topk_group: the experts are n_group groups of equal size, and only those of the topk_group best groups
      are chosen from; 1, 1 for no groups. A group is as good as its best score (DeepSeek-V2), with a correction bias as
      the sum of its two best (DeepSeek-V3).
    - routed_scaling_factor: the weights are multiplied by it, last.
    - token_slots, expert_map: as for ``reroute``.
    - returns: weights float32 ``[T, top_k]``, the best first, and ids int32 ``[T, top_k]``: ``expert_map`` applied.

    Of equal scores the lower expert id comes first, also between groups. NaN counts as higher than any number, as
    torch.sort has it: with softmax, one NaN or +inf among a token's logits makes all its weights NaN, and its ids the
    lowest ones; with sigmoid, it is that expert's weight alone.

    Raises as ``reroute``, and ValueError for sizes that do not fit together.
"""

from __future__ import annotations

import torch

SCHEMAS = (
    "reroute(Tensor topk_ids, Tensor token_slots, Tensor expert_map) -> Tensor",
    "reroute_(Tensor(a!) topk_ids, Tensor token_slots, Tensor expert_map) -> ()",
    "gating_reroute(Tensor logits, Tensor? correction_bias, int top_k, str scoring, bool renormalize, int n_group, "
    "int topk_group, float routed_scaling_factor, Tensor token_slots, Tensor expert_map) "
    "-> (Tensor weights, Tensor ids)",
)

LIBRARY = torch.library.Library("npu_weave", "DEF")  # type: ignore[no-untyped-call]

for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
