"""Which rows of one MoE layer's weight tensors are free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

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

    @property
    def free_rows(self) -> list[int]:
        """The free rows, ascending."""
        return list(self._free)

    def allocate(self, count: int, thing: str) -> list[int]:
        """Take `count` rows, ascending. Mutates nothing when it fails.

        Raises:
            CapacityError: ROWS_EXHAUSTED, fewer than `count` rows are free.
        """
        self.check_free(count, thing)
        start = self._best_run(count)
        rows = self._free[start : start + count]
        del self._free[start : start + count]
        return rows

    def check_free(self, count: int, thing: str) -> None:
        """Raises CapacityError ``ROWS_EXHAUSTED`` when fewer than `count` rows are free."""
        if count > self.free:
            raise CapacityError(
                "ROWS_EXHAUSTED",
                thing,
                expected=f"at most {self.free} experts (free rows of {self.count})",
                got=f"{count} experts",
                remedy="unload an adapter, lower --max-loras, or raise npu_weave.adapter_rows",
            )

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


class RankedRows:
    """The adapter rows of one layer on every rank; each rank keeps the same account of all.

    Args:
        ranks: ranks that share the layer's experts.
        rows_per_rank: rows of each, base experts included.
        count: adapter rows of each, its last.
    """

    def __init__(self, ranks: int, rows_per_rank: int, count: int) -> None:
        self.count = count
        self.rows_per_rank = rows_per_rank
        self._ranks = [RowAllocator((rank + 1) * rows_per_rank - count, count) for rank in range(ranks)]

    @property
    def total(self) -> int:
        """Adapter rows of all ranks."""
        return self.count * len(self._ranks)

    @property
    def free(self) -> int:
        """Free rows of all ranks."""
        return sum(rows.free for rows in self._ranks)

    @property
    def free_rows(self) -> list[int]:
        """The free rows of all ranks, ascending."""
        return [row for rows in self._ranks for row in rows.free_rows]

    def rank_of(self, row: int) -> int:
        """The rank that has `row`."""
        return row // self.rows_per_rank

    def allocate(self, ranks: Sequence[int], thing: str) -> list[int]:
        """A row on each of `ranks`, in their order. Mutates nothing when it fails.

        Raises:
            CapacityError: ROWS_EXHAUSTED.
        """
        counts = Counter(ranks)
        for rank, count in counts.items():
            self._ranks[rank].check_free(count, thing)
        given = {rank: iter(self._ranks[rank].allocate(count, thing)) for rank, count in counts.items()}
        return [next(given[rank]) for rank in ranks]

    def release(self, rows: Iterable[int]) -> None:
        """Give rows back.

        Raises:
            IntegrityError: ROW_NOT_ALLOCATED.
        """
        by_rank = defaultdict(list)
        for row in rows:
            by_rank[min(self.rank_of(row), len(self._ranks) - 1)].append(row)
        for rank, own in by_rank.items():
            self._ranks[rank].release(own)
