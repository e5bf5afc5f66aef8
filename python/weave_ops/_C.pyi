"""The compiled CPU kernels. Importing the module registers them as operators.

Its two functions are what runs in every layer and step. Weights that go through the caches take the code out of them,
and each line of it then waits for memory: a call that touches little code is several times as fast in its place, which
timing it in a row does not show.
"""

import numpy as np
import numpy.typing as npt
import torch

def reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor, /) -> torch.Tensor:
    """`torch.ops.npu_weave.reroute` of CPU tensors, without torch's dispatcher: nothing traces or profiles it."""

def fill_token_slots(
    revisions: npt.NDArray[np.integer],
    tokens: npt.NDArray[np.integer],
    slot_of_revision: npt.NDArray[np.int32],
    last_used: npt.NDArray[np.int64],
    step: int,
    out: npt.NDArray[np.int32],
    used: int,
    /,
) -> int:
    """Prepare a step: every token gets the slot of its request's revision.

    Args:
        revisions, tokens: int32 or int64 ``[requests]``; the revision and the number of tokens of each, in order.
        slot_of_revision: int32 ``[revisions]``; -1 for none.
        last_used: int64 ``[slots]``; `step` is noted for each slot that a request has. Mutated.
        out: int32; the slots of the tokens, and 0 from there to `used`. Mutated.
        used: entries of `out` that may not be 0.

    Returns:
        The number of tokens. Nothing was written where that is more than `out` has room for, and where it is -1: a
        revision has no slot, or is beyond `slot_of_revision`.

    Raises:
        TypeError: an array is not of one dimension without gaps, or of another type.
        ValueError: there are not as many `tokens` as `revisions`, one of either is below 0, or a slot is beyond
            `last_used`.
    """
