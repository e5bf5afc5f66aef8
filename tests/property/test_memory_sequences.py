"""Random sequences of maps and unmaps against a model that is too simple to be wrong."""

from __future__ import annotations

import os

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from npu_weave.errors import CapacityError, DriverError
from npu_weave.memory import FaultDriver, HostDriver, PagePool, VirtualTensor, process_shmem_bytes

PAGE = 2 << 20
ROWS = 24
NOISE = 512 << 10  # other shared memory of the process, in bytes
ROW_BYTES = (PAGE // 4, PAGE // 2 + 4096, PAGE, 3 * PAGE // 2, 3 * PAGE // 4, 4100, 2 * PAGE + 4)


def bytes_under(row: int, row_bytes: int) -> set[int]:
    """Pages a row lies on, found by walking over it, 4 bytes at a time at its ends and page by page between."""
    first, last = row * row_bytes, (row + 1) * row_bytes - 4
    return {at // PAGE for at in (*range(first, last, PAGE), first, last)}


class Sequences(RuleBasedStateMachine):
    """Two tensors of different row sizes over one limited pool. The model: which row holds which mark."""

    @initialize(sizes=st.tuples(st.sampled_from(ROW_BYTES), st.sampled_from(ROW_BYTES)), limit=st.integers(8, 60))
    def start(self, sizes: tuple[int, int], limit: int) -> None:
        self.shmem = process_shmem_bytes()
        self.driver = FaultDriver(HostDriver())
        self.limit = limit
        self.pool = PagePool(self.driver, limit * PAGE)
        self.sizes = sizes
        self.marks: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.next_mark = 1
        self.tensors = [
            VirtualTensor(self.pool, rows=ROWS, row_shape=(size // 4,), dtype=torch.int32, name=f"w{number}")
            for number, size in enumerate(sizes)
        ]

    def pages(self, which: int, rows: set[int]) -> set[int]:
        return set().union(*(bytes_under(row, self.sizes[which]) for row in rows))

    def total(self) -> int:
        return sum(len(self.pages(which, set(self.marks[which]))) for which in (0, 1))

    @rule(which=st.integers(0, 1), rows=st.sets(st.integers(0, ROWS - 1), max_size=ROWS))
    def map_rows(self, which: int, rows: set[int]) -> None:
        rows -= self.marks[which].keys()
        mapped = self.pages(which, set(self.marks[which]))
        fresh = len(self.pages(which, rows) - mapped)
        tensor = self.tensors[which]
        assert tensor.pages_needed(rows) == fresh
        if self.total() + fresh > self.limit:
            try:
                tensor.map_rows(rows)
            except CapacityError as error:
                assert error.code == "MEMORY_EXHAUSTED"
            else:
                raise AssertionError("more pages than the limit allows")
            return
        tensor.map_rows(rows)
        for row in sorted(rows):
            self.marks[which][row] = self.next_mark
            tensor.row_view(row).fill_(self.next_mark)
            self.next_mark += 1

    @rule(which=st.integers(0, 1), data=st.data())
    def unmap_rows(self, which: int, data: st.DataObject) -> None:
        rows = data.draw(st.sets(st.sampled_from(sorted(self.marks[which])))) if self.marks[which] else set()
        self.tensors[which].unmap_rows(rows)
        for row in rows:
            del self.marks[which][row]

    @precondition(lambda self: self.marks[0].keys() != set(range(ROWS)))
    @rule(call=st.sampled_from(["create_page", "map"]), n=st.integers(1, 12))
    def fail_to_map(self, call: str, n: int) -> None:
        self.driver.arm((call, n))
        rows = set(range(ROWS)) - self.marks[0].keys()
        try:
            self.tensors[0].map_rows(rows)
        except (DriverError, CapacityError):
            pass
        else:
            self.tensors[0].unmap_rows(rows)
        self.driver.arm(None)

    @precondition(lambda self: bool(self.marks[0]))
    @rule(call=st.sampled_from(["fence", "unmap"]), n=st.integers(1, 12))
    def fail_to_unmap(self, call: str, n: int) -> None:
        self.driver.arm((call, n))
        try:
            self.tensors[0].unmap_rows(self.marks[0])
        except DriverError:
            pass
        else:
            self.marks[0].clear()
        self.driver.arm(None)

    @invariant()
    def books_agree_with_the_model_the_driver_and_the_system(self) -> None:
        pages = self.total()
        stats = self.driver.stats()
        assert (stats.pages, stats.mapped_pages, self.pool.in_use) == (pages, pages, pages)
        assert abs(process_shmem_bytes() - self.shmem - pages * PAGE) <= NOISE
        self.pool.check_integrity()
        for which, tensor in enumerate(self.tensors):
            tensor.check_integrity()
            assert tensor.mapped_rows == self.marks[which].keys()
            assert tensor.mapped_bytes == len(self.pages(which, set(self.marks[which]))) * PAGE
            assert tensor.exact_bytes == len(self.marks[which]) * self.sizes[which]
            for row, mark in self.marks[which].items():
                view = tensor.row_view(row)
                assert int(view.min()) == int(view.max()) == mark

    def teardown(self) -> None:
        for tensor in getattr(self, "tensors", ()):
            tensor.close()
        if hasattr(self, "driver"):
            assert self.driver.stats().pages == 0


# WEAVE_PROPERTY_EXAMPLES=10000 for the long run.
Sequences.TestCase.settings = settings(
    max_examples=int(os.environ.get("WEAVE_PROPERTY_EXAMPLES", "30")), stateful_step_count=25, deadline=None
)
TestSequences = Sequences.TestCase
