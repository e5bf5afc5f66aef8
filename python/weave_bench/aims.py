"""What a run should show, and whether it does: the first table of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from weave_bench.results import Label, Row, Run, Spread

Labels = Mapping[str, Label]


class Aim(NamedTuple):
    """One thing to hold.

    Attributes:
        what: for people.
        table, column: where it is found; in every row that `where` takes.
        bound: of the median; None when 1 is to be within the quarters.
        least: whether `bound` is the least that will do, not the most.
        noise: the column whose quarters the median is to be within, instead of a bound.
    """

    what: str
    table: str
    column: str
    bound: float | None
    least: bool = False
    where: Callable[[Labels], bool] = lambda labels: True
    noise: str | None = None

    def judge(self, row: Row) -> tuple[float, bool] | None:
        """One row's median, and whether it will do; None where the row has nothing to say."""
        value = row.values.get(self.column)
        within = value if self.noise is None else row.values.get(self.noise)
        if value is None or within is None or not self.where(row.labels):
            return None
        median = value.median if isinstance(value, Spread) else value
        if self.bound is None:
            wanted = 1.0 if self.noise is None else median
            return median, isinstance(within, Spread) and within.low <= wanted <= within.high
        return median, median >= self.bound if self.least else median <= self.bound


class Finding(NamedTuple):
    """What a run says of an aim: medians, lowest and highest, and in how many rows it holds."""

    aim: Aim
    lowest: float
    highest: float
    held: int
    rows: int


def _decode(labels: Labels) -> bool:
    return labels["step"] == "decode"


def _small_batch(labels: Labels) -> bool:
    return int(labels["requests"]) <= 32


def _skewed(labels: Labels) -> bool:
    """One engine beside two of the same threads in all, where experts weigh, under skew, with more than can be done."""
    there = labels["system"] == "npu-weave" and labels["model"] == "wide"
    return there and float(labels["load"]) > 1 and float(labels["alpha"]) < 1


AIMS = (
    Aim("decode: time over rows", "overhead", "time / rows", 1.10, where=_decode),
    Aim("mixed prefill: time over rows", "overhead", "time / rows", 1.10, where=lambda labels: not _decode(labels)),
    Aim("parity: 1 is within the quarters of the ratio", "parity", "ratio", None),
    Aim("parity: the ratio is within the noise of equal copies", "parity", "ratio", None, noise="noise"),
    Aim("own work, us a layer", "own-work", "reroute", 20, where=_small_batch),
    Aim("own work in place, us a layer", "own-work", "reroute in place", 20, where=_small_batch),
    Aim("own work, us a step", "own-work", "step", 50, where=_small_batch),
    Aim("own work in place, us a step", "own-work", "step in place", 50, where=_small_batch),
    Aim("tensors allocated a layer, the result's", "own-work", "allocations", 1),
    Aim("tensors allocated a step", "own-work", "step allocations", 0),
    Aim("waits for a lock", "own-work", "waits", 0),
    Aim("decode throughput over two merged engines", "merged", "decode / merged", 1.18, True, _skewed),
    Aim("prefill throughput over two merged engines", "merged", "prefill / merged", 1.14, True, _skewed),
    Aim("p99 between tokens with loads over without", "live", "p99 ratio", 1.10),
    Aim("answers as plain vLLM's, mixed traffic", "accuracy", "same tokens", 1, True),
    Aim("answers as plain vLLM's to the bit, one by one", "accuracy", "same bits", 1, True),
    Aim("memory over the exact need, percent", "memory", "waste", 2),
    Aim("GPU: time over rows", "gpu-overhead", "time / rows", 1.10),
    Aim("GPU: parity, ratio is 1 within the quarters", "gpu-parity", "ratio", None),
)


def findings(run: Run) -> Iterator[Finding]:
    """Of every aim that the run's tables have rows for."""
    tables = {table.name: table for part in run.parts.values() for table in part.tables}
    for aim in AIMS:
        rows = tables[aim.table].rows if aim.table in tables else ()
        found = [judged for judged in map(aim.judge, rows) if judged is not None]
        if found:
            medians, holds = zip(*found, strict=True)
            yield Finding(aim, min(medians), max(medians), sum(holds), len(found))
