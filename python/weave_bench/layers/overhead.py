"""Table ``overhead``: steps with adapters over the same steps of base tokens, beside the rows that each touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from weave_bench.layers.batch import Shape
from weave_bench.layers.bench import Bench
from weave_bench.layers.pairing import time_pair
from weave_bench.layers.rows import distinct_rows
from weave_bench.results import Row, Table, ratios, spread

COLUMNS = {
    "base": "ms, all tokens the base model's",
    "adapters": "ms, tokens of the adapters",
    "time ratio": "adapters over base, in pairs",
    "base rows": "distinct expert rows a layer that base tokens touch",
    "adapter rows": "the same of the adapters' tokens",
    "row ratio": "adapter rows over base rows: what physics asks for in decode, an upper bound in prefill",
    "time / rows": "time ratio over row ratio, step by step; the aim is at most 1.10",
}
SHOWS = (
    "A decode step has to read each expert that one of its tokens wants once; with adapters it wants more distinct "
    "ones. The time ratio is what adapters cost in the MoE layers, the row ratio is what reading these rows would cost "
    "anybody, and their quotient is what is left to our account. In prefill computing counts beside reading, so the "
    "quotient falls below one without any merit of ours. Every pair is the same step, once with its adapters and once "
    "as the base model's, one after the other with caches emptied before each; every pair is another step. Requests "
    "are dealt evenly over the adapters and none is the base model's: with skewed shares, or base requests among them, "
    "fewer distinct rows are touched. Only MoE layers are timed, from the choice of experts to their output: attention "
    "and the rest of a model would bring the ratios nearer to one. All adapters are loaded in every row of the table."
)


@dataclass
class _Cell:
    """What was found for one shape and number of adapters, pair by pair; times in ms, rows summed over layers."""

    base: list[float] = field(default_factory=list)
    adapters: list[float] = field(default_factory=list)
    base_rows: list[float] = field(default_factory=list)
    adapter_rows: list[float] = field(default_factory=list)


def overhead(bench: Bench) -> Table:
    """Measure every shape with every number of adapters."""
    scale, rows = bench.scale, []
    with tqdm(total=len(scale.shapes) * (scale.pairs + 1) * len(scale.adapters), desc="overhead") as bar:
        for shape in scale.shapes:
            cells = _measure(bench, shape, bar)
            rows += [_row(shape, adapters, cell, bench.woven.count) for adapters, cell in cells.items()]
    title = f"Time of {bench.woven.count} MoE layers with adapters over the base model's, and the rows they read"
    return Table("overhead", title, COLUMNS, rows, SHOWS)


def _measure(bench: Bench, shape: Shape, bar: tqdm[None]) -> dict[int, _Cell]:
    """All numbers of adapters in turn; the first turn warms up and does not count."""
    cells = {adapters: _Cell() for adapters in bench.scale.adapters}
    for turn in range(bench.scale.pairs + 1):
        for adapters, cell in cells.items():
            step = bench.step(shape, adapters, turn)
            ways = bench.of_base(step), bench.with_adapters(step)
            base, ours = time_pair(*ways, swap=turn % 2 == 1, between=bench.cold)
            bar.update()
            if turn == 0:
                continue
            cell.base.append(base)
            cell.adapters.append(ours)
            for way, found in zip(ways, (cell.base_rows, cell.adapter_rows), strict=True):
                way.prepare()
                found.append(distinct_rows(bench.woven.rows(step)))
    return cells


def _row(shape: Shape, adapters: int, cell: _Cell, layers: int) -> Row:
    return Row(
        {"step": shape.kind, "requests": shape.requests, "tokens": shape.tokens, "adapters": adapters},
        {
            "base": spread(cell.base),
            "adapters": spread(cell.adapters),
            "time ratio": ratios(cell.adapters, cell.base),
            "base rows": spread(_each(cell.base_rows, layers)),
            "adapter rows": spread(_each(cell.adapter_rows, layers)),
            "row ratio": ratios(cell.adapter_rows, cell.base_rows),
            "time / rows": ratios(_quotients(cell.adapters, cell.base), _quotients(cell.adapter_rows, cell.base_rows)),
        },
    )


def _quotients(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _each(sums: Sequence[float], layers: int) -> list[float]:
    return [total / layers for total in sums]
