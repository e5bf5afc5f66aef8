"""Which rows of one MoE layer's weight tensors are free."""

from __future__ import annotations

from collections.abc import Iterable

from npu_weave.errors import CapacityError, IntegrityError


class RowAllocator:
    """Hands out the adapter rows ``first ... first + count - 1`` of one layer, each to one owner at a time.

    Neighbouring rows share boundary pages, so an allocation takes the shortest free run that holds it whole, and
    only when there is none the lowest free rows. Not thread-safe: one owner (the worker's adapter store) calls it.
    """

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self._free = list(range(first, first + count))

    @property
    def free(self) -> int:
        """Number of free rows."""
        return len(self._free)

    def allocate(self, count: int, thing: str) -> list[int]:
        """Take `count` rows, ascending. Mutates nothing when it fails.

        Raises:
            CapacityError: ROWS_EXHAUSTED, fewer than `count` rows are free.
        """
        if count > self.free:
            raise CapacityError(
                "ROWS_EXHAUSTED",
                thing,
                expected=f"at most {self.free} experts (free rows of {self.count})",
                got=f"{count} experts",
                remedy="unload an adapter, lower --max-loras, or raise npu_weave.adapter_rows",
            )
        start = self._best_run(count)
        rows = self._free[start : start + count]
        del self._free[start : start + count]
        return rows

    def release(self, rows: Iterable[int]) -> None:
        """Give rows back.

        Raises:
            IntegrityError: ROW_NOT_ALLOCATED, a row is not an adapter row or is free already.
        """
        given = set(rows)
        foreign = [row for row in given if not self.first <= row < self.first + self.count]
        twice = given.intersection(self._free)
        if foreign or twice:
            raise IntegrityError(
                "ROW_NOT_ALLOCATED",
                f"rows {sorted(foreign) or sorted(twice)}",
                expected="rows handed out before",
                got="a row that is free or not an adapter row",
            )
        self._free = sorted([*self._free, *given])

    def _best_run(self, count: int) -> int:
        """Index into the free list where the allocation starts: the tightest run, else the lowest rows."""
        best, best_length = 0, None
        start = 0
        for index in range(1, len(self._free) + 1):
            if index < len(self._free) and self._free[index] == self._free[index - 1] + 1:
                continue
            length = index - start
            if length >= count and (best_length is None or length < best_length):
                best, best_length = start, length
            start = index
        return best
