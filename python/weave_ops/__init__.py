"""The operators of npu-weave, as `torch.ops.npu_weave`. Importing this package registers them.

    >>> import torch, weave_ops
    >>> ids = torch.tensor([[0, 2], [1, 2]], dtype=torch.int32)
    >>> token_slots = torch.tensor([0, 1], dtype=torch.int32)
    >>> expert_map = torch.tensor([[0, 1, 2], [0, 1, 3]], dtype=torch.int32)
    >>> torch.ops.npu_weave.reroute(ids, token_slots, expert_map).tolist()
    [[0, 2], [1, 3]]

One schema an operator (`schema`), one meaning (`reference`), several backends, picked by the device of the tensors.
"""

import torch  # noqa: F401  (its libraries must be loaded before the extension that is linked to them)

from weave_ops import _C, meta, schema, triton
from weave_ops._C import fill_token_slots
from weave_ops._C import reroute as reroute_on_cpu

__all__ = ["_C", "fill_token_slots", "meta", "reroute_on_cpu", "schema", "triton"]
