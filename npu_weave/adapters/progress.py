"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called as `progress(stage, done, total)`, with `done` and `total` in bytes; `stage` names the work.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Takes progress and shows nothing."""
