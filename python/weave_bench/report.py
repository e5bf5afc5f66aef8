"""From a run to what people read: tables on a terminal, and a report in Markdown with figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import rich.table
from rich.console import Console

from weave_bench import aims, figures
from weave_bench.paper import FINDINGS
from weave_bench.results import Part, Row, Run, Spread, Table

TITLES = {
    "steps": "Steps of MoE layers",
    "serve": "Serving",
    "live": "Loading while others are answered",
    "accuracy": "Accuracy",
    "memory": "Memory",
    "loads": "Loading",
    "catalogue": "Catalogue",
    "kernels": "Kernels",
    "gpu": "On a GPU",
}


UNSETTLED = 3.0
"""A measure whose quarters are further apart than this has no median worth telling."""
_PRINTED = 12
"""Most columns of a table that is printed."""


def print_part(part: Part, console: Console) -> None:
    """Show what a part found, but for tables that no console is wide enough for."""
    for table in part.tables:
        if len(table.columns) > _PRINTED:
            console.print(f"{table.title}: {len(table.rows)} rows of {len(table.columns)} columns, in the report")
            continue
        shown = rich.table.Table(title=table.title)
        for name in _label_names(table):
            shown.add_column(name)
        for name in table.columns:
            shown.add_column(name, justify="right")
        for row in table.rows:
            shown.add_row(*_cells(table, row))
        console.print(shown)
    for reason in part.left_out:
        console.print(f"left out: {reason}")


def write_report(run: Run, path: Path) -> list[Path]:
    """Write a report to `path` (``NAME.md``) and its figures into ``NAME/`` beside it; returns what was written."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    written = [path]
    lines = [*_head(run), *_aims(run)]
    for name, title in TITLES.items():
        part = run.parts.get(name)
        if part is None:
            continue
        lines += [f"## {title}", "", _ran(part), ""]
        for table in part.tables:
            drawn = figures.draw(table, pictures)
            written += drawn
            lines += _section(table, [f"{pictures.name}/{picture.name}" for picture in drawn])
        lines += [f"- Left out: {reason}" for reason in part.left_out] + [""] * bool(part.left_out)
    path.write_text("\n".join(lines).rstrip() + "\n")
    return written


def _head(run: Run) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield (
        "What `bash scripts/run_bench.sh` found. A value is the median of repeats with the quarters around it in "
        "brackets, and *unsettled* where these are more than three times apart. Ratios are taken between what was "
        "measured beside each other in the same repeat; on a shared machine only they mean much, and absolute times "
        "say something about that machine alone. Nothing here comes from an NPU"
        + ("." if "gpu" in run.parts else ", and nothing from a GPU.")
        + " Each table says what it does not show."
    )
    yield ""
    yield "| part | measured | commit | machine | packages |"
    yield "|---|---|---|---|---|"
    for name in TITLES:
        if name in run.origins:
            origin = run.origins[name]
            where = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in origin.machine.items())
            if origin.stolen is not None:
                where += f"; the host gave {origin.stolen:.1%} of the cores to others meanwhile"
            packages = ", ".join(f"{package} {version}" for package, version in origin.versions.items())
            yield f"| {name} | {origin.started[:10]} | `{origin.commit}` | {where} | {packages} |"
    yield ""


def _aims(run: Run) -> Iterator[str]:
    found = list(aims.findings(run))
    if not found:
        return
    yield "## Aims"
    yield ""
    yield "Medians of all rows that an aim is about; the tables below have each, and say what it does not show."
    yield ""
    yield "| aim | bound | found | rows that hold |"
    yield "|---|---:|---:|---:|"
    for aim, lowest, highest, held, rows in found:
        bound = "1" if aim.bound is None else f"{'at least' if aim.least else 'at most'} {_number(aim.bound)}"
        span = _number(lowest) if lowest == highest else f"{_number(lowest)} to {_number(highest)}"
        yield f"| {aim.what} | {bound} | {span} | {held} of {rows} |"
    yield ""


def _ran(part: Part) -> str:
    settings = "; ".join(f"{name}: {_plain(value)}" for name, value in part.settings.items())
    kind = "quick" if part.quick else "full"
    return f"Part `{part.name}`, {kind}, {part.seconds / 60:.0f} min. {settings}."


def _section(table: Table, drawn: list[str]) -> Iterator[str]:
    yield f"### {table.title}"
    yield ""
    if table.shows:
        yield table.shows
        yield ""
    yield from (f"![{table.title}]({name})" for name in drawn)
    yield from [""] * bool(drawn)
    names = [*_label_names(table), *table.columns]
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(_label_names(table)) + "---:|" * len(table.columns)
    for row in table.rows:
        yield "| " + " | ".join(_cells(table, row)) + " |"
    yield ""
    yield from (f"- *{name}*: {meaning}" for name, meaning in table.columns.items())
    yield ""
    findings = FINDINGS.get(table.name.removeprefix("gpu-"), ())
    for finding in findings:
        yield f"- The paper: {finding.where}: {finding.what}"
    yield from [""] * bool(findings)


def _label_names(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row.labels))


def _cells(table: Table, row: Row) -> list[str]:
    labels = [_plain(row.labels.get(name, "")) for name in _label_names(table)]
    return labels + [_number(row.values.get(name)) for name in table.columns]


def _number(value: Spread | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, Spread):
        if value.repeats == 1:
            return _number(value.median)
        if value.high > UNSETTLED * value.low:
            return f"unsettled ({_number(value.low)} ... {_number(value.high)})"
        return f"{_number(value.median)} ({_number(value.low)} ... {_number(value.high)})"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value)
    return str(value)
