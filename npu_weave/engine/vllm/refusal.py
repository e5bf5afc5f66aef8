"""What is told of every setting that is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """One setting that is refused.

    Attributes:
        setting: how the user writes it.
        applies: whether a given VllmConfig has it.
        reason: what would go wrong.
        remedy: what to do instead.
    """

    setting: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str
