"""What each operator takes and returns: the one definition that all backends implement.

``reroute(Tensor topk_ids, Tensor token_slots, Tensor expert_map) -> Tensor``
    ``out[t, k] = expert_map[token_slots[t], topk_ids[t, k]]``, for each token its expert ids as rows of the weight
    tensor.

    - topk_ids: int32 or int64, ``[T, K]``, any strides; values in ``[0, M)``.
    - token_slots: int32, ``[>= T]``; values in ``[0, slots]``. Entries from T on are not read.
    - expert_map: int32, ``[slots + 1, M]``. Row 0 is the base model's.
    - returns: contiguous ``[T, K]`` of the dtype of topk_ids; a new tensor.

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, and on the CPU IndexError, naming the first such
    token, for a slot or an id outside of expert_map: wrong routing is never served.

``reroute_(Tensor(a!) topk_ids, Tensor token_slots, Tensor expert_map) -> ()``
    The same, written over topk_ids, which a refused call leaves as it was. It returns nothing, because torch.compile
    takes no operator that returns its own argument.
"""

from __future__ import annotations

import torch

SCHEMAS = (
    "reroute(Tensor topk_ids, Tensor token_slots, Tensor expert_map) -> Tensor",
    "reroute_(Tensor(a!) topk_ids, Tensor token_slots, Tensor expert_map) -> ()",
)

LIBRARY = torch.library.Library("npu_weave", "DEF")  # type: ignore[no-untyped-call]

for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
