"""The slot of every token in the step: 0 for the base model, 1 ... N for adapters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from npu_weave.errors import IntegrityError
from weave_ops import fill_token_slots


class TokenSlots:
    """One persistent int32 buffer ``[capacity]``, filled once a step, read by every MoE layer.

    Where MoE layers get the tokens of several ranks at once (data parallelism), a second one has room for the slots of
    them all; whoever gathers tokens fills it.

    Entries past the step's tokens are 0, so padding rows always take the base model's experts. The buffer's address
    never changes, and it is written in the order of the device's stream.

    Args:
        capacity: the most tokens of a step, padding included.
        ranks: data parallel ranks.

    Attributes:
        buffer: of this rank's tokens.
        of_all_ranks: int32 ``[ranks * capacity]``, on the device as well; empty for one rank.
    """

    def __init__(self, capacity: int, device: torch.device, *, ranks: int = 1) -> None:
        self.capacity = capacity
        self.used = 0
        self._step = 0
        self._host = torch.zeros(capacity, dtype=torch.int32)
        self._array: npt.NDArray[np.int32] = self._host.numpy()
        self.buffer = self._host if device.type == "cpu" else torch.zeros(capacity, dtype=torch.int32, device=device)
        self.of_all_ranks = torch.zeros(ranks * capacity if ranks > 1 else 0, dtype=torch.int32, device=device)

    def fill(
        self,
        revisions: npt.NDArray[np.integer],
        tokens: npt.NDArray[np.integer],
        slot_of_revision: npt.NDArray[np.int32],
        last_used: npt.NDArray[np.int64],
    ) -> bool:
        """Give the slot of each request's revision to each of its tokens, in batch order. Mutates the buffer.

        Args:
            revisions: ``[requests]``.
            tokens: ``[requests]`` scheduled tokens of each request.
            slot_of_revision: ``[revisions]``, -1 for none.
            last_used: ``[slots]``; a number that grows with every call is noted for those of the requests. Mutated.

        Returns:
            Whether all revisions have a slot; nothing is changed where one has none.

        Raises:
            IntegrityError: TOKENS_BEYOND_BUFFER, the step has more tokens than the engine said it ever would.
        """
        before = self.used
        self._step += 1
        count = fill_token_slots(revisions, tokens, slot_of_revision, last_used, self._step, self._array, before)
        if count < 0:
            return False
        if count > self.capacity:
            raise IntegrityError(
                "TOKENS_BEYOND_BUFFER",
                "token slots",
                expected=f"at most {self.capacity} tokens a step",
                got=f"{count}",
            )
        self.used = count
        if self.buffer is not self._host:
            self._copy_to_device(max(before, count))
        return True

    def clear(self) -> None:
        """Make every token the base model's. Mutates the buffer."""
        before, self.used = self.used, 0
        self._array[:before] = 0
        if self.buffer is not self._host:
            self._copy_to_device(before)

    def _copy_to_device(self, count: int) -> None:
        # pinned memory of its own for every step, which torch reuses when the copy is done: the step thread does not
        # wait for the device, and a later step does not overwrite what is still to be copied
        staged = torch.empty(count, dtype=torch.int32, pin_memory=True).copy_(self._host[:count])
        self.buffer[:count].copy_(staged, non_blocking=True)
