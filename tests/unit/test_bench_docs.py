"""docs/benchmarks.md is the report of the committed run, and what reports look for is in that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from weave_bench.aims import AIMS
from weave_bench.figures import FIGURES
from weave_bench.report import write_report
from weave_bench.results import Table, read_run

DOCS = Path(__file__).parents[2] / "docs"
RUN = read_run(DOCS / "benchmarks" / "run.json")
TABLES: dict[str, Table] = {table.name: table for part in RUN.parts.values() for table in part.tables}


def test_the_documentation_is_the_report_of_a_full_run(tmp_path: Path) -> None:
    written = write_report(RUN, tmp_path / "benchmarks.md")
    assert written[0].read_text() == (DOCS / "benchmarks.md").read_text()
    assert all((DOCS / "benchmarks" / picture.name).exists() for picture in written[1:])
    assert {"steps", "serve", "accuracy", "memory", "loads", "kernels"} <= RUN.parts.keys()
    assert not any(part.quick for part in RUN.parts.values())
    assert RUN.origins.keys() == RUN.parts.keys()
    assert not any(origin.commit.endswith("+") for origin in RUN.origins.values()), "of trees that were committed"


@pytest.mark.parametrize("name", sorted(FIGURES.keys() & TABLES.keys()))
def test_figures_name_labels_and_columns_that_their_tables_have(name: str) -> None:
    figure, table = FIGURES[name], TABLES[name]
    assert set(figure.columns) <= table.columns.keys()
    assert all({*figure.across, *figure.series} <= row.labels.keys() for row in table.rows)


def test_tables_have_what_aims_are_about() -> None:
    assert {"overhead", "parity", "own-work", "merged", "memory", "accuracy"} <= TABLES.keys()
    for aim in AIMS:
        if aim.table in TABLES:
            rows = [row for row in TABLES[aim.table].rows if aim.where(row.labels)]
            assert rows and all(row.values[aim.column] is not None for row in rows), aim.what


def test_figures_are_of_tables_that_there_are() -> None:
    assert {name for name in FIGURES if not name.startswith("gpu-")} <= TABLES.keys()
