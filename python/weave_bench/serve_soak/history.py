"""Which contents a name stood for at an instant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

GONE = None
"""What a name stands for that is not served."""


@dataclass
class _Era:
    content: str | None
    begin: float
    end: float = math.inf


@dataclass
class History:
    """Of one name. While a call changes it, both what was and what will be may be met."""

    _eras: list[_Era] = field(default_factory=list)

    def begins(self, content: str | None, at: float) -> None:
        """A call that makes the name stand for `content` was sent."""
        self._eras.append(_Era(content, at))

    def settled(self, at: float) -> None:
        """It was answered: what was before is over."""
        for era in self._eras[:-1]:
            era.end = min(era.end, at)

    def refused(self) -> None:
        """It was refused: all is as before."""
        self._eras.pop()

    @property
    def now(self) -> str | None:
        """What it stands for, or will when the call under way has ended."""
        return self._eras[-1].content

    def between(self, begin: float, end: float) -> set[str | None]:
        """All that may have been met in that time."""
        return {era.content for era in self._eras if era.begin <= end and era.end >= begin}
