"""Which batches are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Which batches are measured, and how often.

    Attributes:
        decode: tokens of a decode step.
        prefill: tokens of a prefill step, in requests of `traffic.REQUEST`.
        adapters: numbers of adapters that a batch uses.
        steps: steps with other tokens that make one turn.
        turns: pairs.
    """

    decode: tuple[int, ...] = (1, 4, 8, 16, 32, 64, 128, 256)
    prefill: tuple[int, ...] = (512, 1024, 2048, 4096)
    adapters: tuple[int, ...] = (1, 5, 10, 20)
    steps: int = 8
    turns: int = 60

    def cases(self) -> Iterator[tuple[str, str, int, int]]:
        """Kind of step, launch, tokens and adapters of every batch."""
        for adapters in self.adapters:
            for tokens in self.decode:
                yield from (("decode", launch, tokens, adapters) for launch in ("eager", "graph"))
            yield from (("prefill", "eager", tokens, adapters) for tokens in self.prefill)


FULL = Plan()
QUICK = Plan(decode=(1, 32, 256), prefill=(1024,), adapters=(1, 20), turns=15)
