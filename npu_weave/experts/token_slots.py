"""The slot of every token in the step: 0 for the base model, 1 ... N for adapters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from npu_weave.errors import IntegrityError


class TokenSlots:
    """One persistent int32 buffer ``[capacity]``, filled once a step, read by every MoE layer.

    Where MoE layers get the tokens of several ranks at once (data parallelism), a second one has room for the slots of
    them all; whoever gathers tokens fills it.

    Entries past the step's tokens are 0, so padding rows always take the base model's experts. The buffer's address
    never changes, and it is written in the order of the device's stream. `lookup` maps a revision id to its slot and is
    all the Python a step needs: no loop over tokens.

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
        self._host = torch.zeros(capacity, dtype=torch.int32)
        self._array: npt.NDArray[np.int32] = self._host.numpy()
        self.buffer = self._host if device.type == "cpu" else torch.zeros(capacity, dtype=torch.int32, device=device)
        self.of_all_ranks = torch.zeros(ranks * capacity if ranks > 1 else 0, dtype=torch.int32, device=device)

    def fill(self, slots: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> None:
        """Give each request's slot to each of its tokens, in batch order. Mutates the buffer.

        Args:
            slots: ``[requests]`` slot of each request.
            tokens: ``[requests]`` scheduled tokens of each request.

        Raises:
            IntegrityError: TOKENS_BEYOND_BUFFER, the step has more tokens than the engine said it ever would.
        """
        self._set(np.repeat(slots, tokens))

    def fill_tokens(self, slots: npt.NDArray[np.int32]) -> None:
        """Set the slot of each token directly, ``[tokens]``. Mutates the buffer."""
        self._set(slots)

    def clear(self) -> None:
        """Make every token the base model's. Mutates the buffer."""
        self._set(np.zeros(0, dtype=np.int32))

    def _set(self, values: npt.NDArray[np.int32]) -> None:
        count = len(values)
        if count > self.capacity:
            raise IntegrityError(
                "TOKENS_BEYOND_BUFFER",
                "token slots",
                expected=f"at most {self.capacity} tokens a step",
                got=f"{count}",
            )
        self._array[:count] = values
        high = max(self.used, count)
        self._array[count:high] = 0
        self.used = count
        if self.buffer is not self._host:
            # pinned memory of its own for every step, which torch reuses when the copy is done: the step thread does
            # not wait for the device, and a later step does not overwrite what is still to be copied
            staged = torch.empty(high, dtype=torch.int32, pin_memory=True).copy_(self._host[:high])
            self.buffer[:high].copy_(staged, non_blocking=True)
