"""Figures of a report, by table: what the paper draws of the same, with medians and quarters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only
import matplotlib.pyplot as plt

from weave_bench.results import Row, Spread, Table


class Figure(NamedTuple):
    """How a table is drawn.

    Attributes:
        across: labels along the axis below; several together make a place of it.
        columns: each has a panel of its own, with a line for each value of `series`; without `series` they are lines
            of one panel.
        series: labels, joined.
        level: value with which a column is compared, drawn as a line; None for none.
        logarithmic: whether the axis of values is.
    """

    across: tuple[str, ...]
    columns: tuple[str, ...]
    series: tuple[str, ...] = ()
    level: float | None = 1.0
    logarithmic: bool = False


_TIMES_AND_ROWS = ("time ratio", "row ratio", "time / rows")

FIGURES: Mapping[str, Figure] = {
    "overhead": Figure(("adapters",), _TIMES_AND_ROWS, ("step", "tokens")),
    "parity": Figure(("step", "tokens"), ("ratio",), ("comparison",)),
    "separate": Figure(("step", "tokens"), ("times", "layers")),
    "own-work": Figure(
        ("requests",), ("reroute", "reroute in place", "step", "step in place"), level=None, logarithmic=True
    ),
    "arrivals": Figure(("adapters",), ("TTFT p50 / base", "TPOT p50 / base", "goodput / base"), ("rate", "alpha")),
    "merged": Figure(
        ("model", "load", "alpha"), ("prefill / merged", "decode / merged", "prefill + decode / merged"), ("system",)
    ),
    "prefill": Figure(("prompt",), ("TTFT / base", "prefill / base"), ("system",)),
    "decode": Figure(("batch",), ("step / base", "decode / base"), ("system",)),
    "memory": Figure(("adapters",), ("driver", "padded", "merged"), level=None),
    "capacity": Figure(("adapters",), ("weights", "KV tokens"), ("design",), None),
    "loads": Figure(("what",), ("ratio",)),
    "kernels": Figure(
        ("tokens",), ("/ softmax + top-k", "/ gating + reroute", "/ separate ops"), ("device", "experts")
    ),
    "gpu-overhead": Figure(("step", "tokens"), _TIMES_AND_ROWS, ("model", "launch", "adapters")),
    "gpu-parity": Figure(("step", "tokens"), ("ratio",), ("compared", "model", "launch", "adapters")),
    "gpu-separate": Figure(("step", "tokens"), ("reroute / fused", "layers"), ("model", "launch")),
}
"""By the name of a table. A table without an entry is not drawn."""

Line = tuple[str, Sequence[Row], str]
"""Name in the legend, rows, and the column of them."""


def draw(table: Table, out: Path) -> list[Path]:
    """Draw `table` into the directory `out`, if there is a figure for it; returns what was written."""
    figure = FIGURES.get(table.name)
    if figure is None or not table.rows:
        return []
    panels = _panels(table, figure)
    canvas, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False)
    places = list(dict.fromkeys(_joined(row, figure.across) for row in table.rows))
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, rows, column in lines:
            points = [(places.index(_joined(row, figure.across)), row.values[column]) for row in rows]
            drawn = [(place, *_bounds(value)) for place, value in points if value is not None]
            if drawn:
                place, middle, below, above = zip(*drawn, strict=True)
                axis.errorbar(place, middle, yerr=(below, above), marker="o", markersize=4, capsize=3, label=name)
        if figure.level is not None:
            axis.axhline(figure.level, color="grey", linewidth=0.8)
        if figure.logarithmic:
            axis.set_yscale("log")
        axis.set_xticks(range(len(places)), [place.replace(", ", "\n") for place in places], fontsize="small")
        axis.set_xlabel(", ".join(figure.across))
        axis.set_title(title)
    handles, names = axes[0][0].get_legend_handles_labels()
    canvas.suptitle(table.title)
    canvas.legend(handles, names, title=", ".join(figure.series), loc="outside lower center", ncols=3, fontsize="small")
    canvas.set_layout_engine("constrained")
    path = out / f"{table.name}.svg"
    with plt.rc_context({"svg.hashsalt": table.name}):  # the same drawing is the same file
        canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
    return [path]


def _panels(table: Table, figure: Figure) -> dict[str, list[Line]]:
    """Title of each panel, and its lines."""
    if not figure.series:
        return {"": [(column, table.rows, column) for column in figure.columns]}
    series: dict[str, list[Row]] = {}
    for row in table.rows:
        series.setdefault(_joined(row, figure.series), []).append(row)
    return {column: [(name, rows, column) for name, rows in series.items()] for column in figure.columns}


def _joined(row: Row, labels: Sequence[str]) -> str:
    return ", ".join(str(row.labels[label]) for label in labels)


def _bounds(value: Spread | float) -> tuple[float, float, float]:
    """Median, and how far the quarters lie below and above it."""
    if isinstance(value, Spread):
        return value.median, value.median - value.low, value.high - value.median
    return value, 0.0, 0.0
