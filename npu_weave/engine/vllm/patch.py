"""What is told of every touch of an engine's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Patch:
    """One patch of an engine.

    Attributes:
        module: imported name of the patched module.
        target: what is replaced in it.
        reason: why it has to be.
        removal: what would make it unnecessary.
        apply: makes the replacement, given the module; AttributeError when the target is not there.
    """

    module: str
    target: str
    reason: str
    removal: str
    apply: Callable[[ModuleType], None]
