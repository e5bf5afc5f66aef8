"""What a run of benchmarks leaves: one JSON file, from which reports and figures are made."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

SCHEMA = 2
"""Version of the file's form."""

Label = str | int | float


class Spread(msgspec.Struct, frozen=True):
    """A measure over repeats: its median, the quarters around it, and how many repeats.

    Ratios are taken within one repeat, in which both sides were measured beside each other.
    """

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} ... {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value: median, lower and upper quartile."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of measures taken in pairs, one pair a repeat."""
    return spread([one / other for one, other in zip(numerators, denominators, strict=True)])


class Row(msgspec.Struct, frozen=True):
    """One line of a table.

    Attributes:
        labels: what was measured, e.g. ``{"system": "npu-weave", "adapters": 10, "batch": 8}``.
        values: what was found, by the names of the table's columns; None for what does not apply.
    """

    labels: Mapping[str, Label]
    values: Mapping[str, Spread | float | None]


class Table(msgspec.Struct, frozen=True):
    """Rows with the same columns.

    Attributes:
        name: by which figures and the report find it.
        title: for people.
        columns: name -> unit and meaning.
        shows: what may be concluded from it, and what not, in sentences.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: Sequence[Row]
    shows: str = ""


class Part(msgspec.Struct, frozen=True):
    """What one part of the benchmarks found.

    Attributes:
        settings: with which it ran, scaling to the machine included.
        left_out: what was not measured, and why.
    """

    name: str
    seconds: float
    quick: bool
    settings: Mapping[str, object]
    tables: Sequence[Table]
    left_out: Sequence[str] = ()


class Origin(msgspec.Struct, frozen=True):
    """Where, of what and when a part was measured.

    Attributes:
        stolen: share of the cores' time that the machine's host gave to others meanwhile; None if not measured.
    """

    machine: Mapping[str, object]
    versions: Mapping[str, str]
    commit: str
    started: str
    stolen: float | None = None


class Run(msgspec.Struct):
    """Parts by name, and where each comes from: they may be measured one by one, on other machines and commits."""

    schema: int
    parts: dict[str, Part] = {}
    origins: dict[str, Origin] = {}

    def add(self, part: Part, origin: Origin) -> None:
        """Put a part in, for one of its name that is there."""
        self.parts[part.name] = part
        self.origins[part.name] = origin


def read_run(path: Path) -> Run:
    """The run in a file. Raises msgspec.ValidationError for another form, ValueError for another version of it."""
    run = msgspec.json.decode(path.read_bytes(), type=Run)
    if run.schema != SCHEMA:
        raise ValueError(f"{path}: schema {run.schema}, where this reads {SCHEMA}; run the benchmark again")
    return run


def write_run(run: Run, path: Path) -> None:
    """Write `run` to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    scratch.replace(path)
