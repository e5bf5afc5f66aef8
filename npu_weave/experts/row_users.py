"""Which content each adapter row of a layer holds, and how many experts of slots use it."""

from __future__ import annotations

from collections import Counter


class RowUsers:
    """Rows by content, with a count of users each: one user is one expert of one slot. Not thread-safe."""

    def __init__(self) -> None:
        self._row_of: dict[str, int] = {}
        self._content_of: dict[int, str] = {}
        self._counts: Counter[int] = Counter()

    @property
    def counts(self) -> dict[int, int]:
        """Row -> its users, at least one each."""
        return dict(self._counts)

    def count(self, row: int) -> int:
        """Users of `row`; 0 for one that nothing uses."""
        return self._counts[row]

    def row_of(self, content: str) -> int | None:
        """The row that holds `content`, or None."""
        return self._row_of.get(content)

    def add(self, content: str, row: int) -> None:
        """Count one more user of `row`, which holds `content`."""
        self._row_of[content] = row
        self._content_of[row] = content
        self._counts[row] += 1

    def drop(self, row: int) -> bool:
        """Count one user less. Returns whether it was the last: the row's content is forgotten then."""
        self._counts[row] -= 1
        if self._counts[row]:
            return False
        del self._counts[row]
        del self._row_of[self._content_of.pop(row)]
        return True

    def agrees(self) -> bool:
        """Whether content to row and row to content say the same, for exactly the rows that have users."""
        back = {row: content for content, row in self._row_of.items()}
        used = {row for row, count in self._counts.items() if count > 0}
        return back == self._content_of and len(back) == len(self._row_of) and back.keys() == used == self.counts.keys()
