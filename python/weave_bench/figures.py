"""Figures of a report, by table: what the paper draws of the same, with medians and quarters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # files only
import matplotlib.pyplot as plt

from weave_bench.results import Label, Row, Spread, Table


class Figure(NamedTuple):
    """How a table is drawn: a line for each value of `series`, a panel for each of `columns`.

    Attributes:
        across: label along the axis below.
        level: value with which a column is compared, drawn as a line; None for none.
    """

    across: str
    series: str
    columns: tuple[str, ...]
    level: float | None = 1.0


FIGURES: dict[str, Figure] = {}
"""By the name of a table. A table without an entry is not drawn."""


def draw(table: Table, out: Path) -> list[Path]:
    """Draw `table` into the directory `out`, if there is a figure for it; returns what was written."""
    figure = FIGURES.get(table.name)
    if figure is None or not table.rows:
        return []
    canvas, panels = plt.subplots(1, len(figure.columns), figsize=(5 * len(figure.columns), 3.6), squeeze=False)
    places = list(dict.fromkeys(row.labels[figure.across] for row in table.rows))
    for panel, column in zip(panels[0], figure.columns, strict=True):
        for name, rows in _series(table, figure.series).items():
            points = [(places.index(row.labels[figure.across]), row.values[column]) for row in rows]
            drawn = [(place, *_bounds(value)) for place, value in points if value is not None]
            if drawn:
                place, middle, below, above = zip(*drawn, strict=True)
                panel.errorbar(place, middle, yerr=(below, above), marker="o", capsize=3, label=str(name))
        if figure.level is not None:
            panel.axhline(figure.level, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(places)), [str(place) for place in places])
        panel.set_xlabel(figure.across)
        panel.set_title(column)
    panels[0][0].legend(title=figure.series, fontsize="small")
    canvas.suptitle(table.title)
    canvas.tight_layout()
    path = out / f"{table.name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
    return [path]


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
