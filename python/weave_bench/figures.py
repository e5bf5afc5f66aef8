"""Figures of a report, by table: what the paper draws of the same, with medians and quarters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only
import matplotlib.pyplot as plt

from weave_bench.results import Label, Row, Spread, Table


class Figure(NamedTuple):
    """How a table is drawn.

    Attributes:
        across: label along the axis below.
        columns: each has a panel of its own, with a line for each value of `series`; without `series` they are lines
            of one panel.
        series: a label.
        level: value with which a column is compared, drawn as a line; None for none.
    """

    across: str
    columns: tuple[str, ...]
    series: str | None = None
    level: float | None = 1.0


FIGURES: dict[str, Figure] = {
    "overhead": Figure("adapters", ("time ratio", "row ratio", "time / rows"), "tokens"),
    "memory": Figure("adapters", ("driver", "padded", "merged"), level=None),
    "capacity": Figure("adapters", ("weights", "KV tokens"), "design", None),
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
    canvas, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    places = list(dict.fromkeys(row.labels[figure.across] for row in table.rows))
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, rows, column in lines:
            points = [(places.index(row.labels[figure.across]), row.values[column]) for row in rows]
            drawn = [(place, *_bounds(value)) for place, value in points if value is not None]
            if drawn:
                place, middle, below, above = zip(*drawn, strict=True)
                axis.errorbar(place, middle, yerr=(below, above), marker="o", capsize=3, label=name)
        if figure.level is not None:
            axis.axhline(figure.level, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set_xlabel(figure.across)
        axis.set_title(title)
    axes[0][0].legend(title=figure.series, fontsize="small")
    canvas.suptitle(table.title)
    canvas.tight_layout()
    path = out / f"{table.name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
    return [path]


def _panels(table: Table, figure: Figure) -> dict[str, list[Line]]:
    """Title of each panel, and its lines."""
    if figure.series is None:
        return {"": [(column, table.rows, column) for column in figure.columns]}
    series = _series(table, figure.series)
    return {column: [(str(name), rows, column) for name, rows in series.items()] for column in figure.columns}


def _series(table: Table, name: str) -> Mapping[Label, list[Row]]:
    found: dict[Label, list[Row]] = {}
    for row in table.rows:
        found.setdefault(row.labels[name], []).append(row)
    return found


def _bounds(value: Spread | float) -> tuple[float, float, float]:
    """Median, and how far the quarters lie below and above it."""
    if isinstance(value, Spread):
        return value.median, value.median - value.low, value.high - value.median
    return value, 0.0, 0.0
