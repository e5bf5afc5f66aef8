"""``python -m weave_bench run``: which parts, into which file, and what is printed of them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from rich.console import Console

from weave_bench import __main__ as command
from weave_bench import host
from weave_bench.host import least_disturbed
from weave_bench.report import print_part
from weave_bench.results import Part, Row, Table, read_run


def table(columns: int) -> Table:
    names = [f"c{index}" for index in range(columns)]
    return Table("t", f"Of {columns}", dict.fromkeys(names, "x"), [Row({"what": "it"}, dict.fromkeys(names, 3.0))])


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A part that measures nothing; whether each of its runs was a quick one."""
    seen: list[bool] = []
    module = ModuleType("weave_bench.nothing")

    def measure(*, quick: bool) -> Part:
        seen.append(quick)
        return Part("nothing", 0.5, quick, {}, [table(2)])

    module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command.PARTS, "nothing", "nothing at all")
    return seen


def test_what_runs_without_a_name() -> None:
    full, quick = command.chosen(None, quick=False), command.chosen(None, quick=True)
    assert full == [name for name in command.PARTS if name != "gpu"]
    assert quick == [name for name in full if name != "live"]
    assert command.chosen(["live", "gpu"], quick=True) == ["live", "gpu"]
    with pytest.raises(typer.BadParameter, match="no part lives; there are steps"):
        command.chosen(["live", "lives"], quick=False)


def test_a_part_is_noted_with_what_the_host_took(
    nothing: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([100.0, 100.0 + 1e9])
    monkeypatch.setattr(host, "_stolen_seconds", lambda: next(taken))
    command.run_parts(["nothing"], quick=True, out=tmp_path / "run.json")
    run = read_run(tmp_path / "run.json")
    assert nothing == [True] and run.parts["nothing"].quick
    stolen = run.origins["nothing"].stolen
    assert stolen is not None and stolen > 1e6
    assert (tmp_path / "report.md").exists()


def test_quick_and_full_runs_have_files_of_their_own(
    nothing: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for quick in (False, True):
        command.run_parts(["nothing"], quick=quick, out=None)
    assert not read_run(command.RUN).parts["nothing"].quick
    assert read_run(command.QUICK_RUN).parts["nothing"].quick


def test_a_table_that_no_console_is_wide_enough_for_is_counted() -> None:
    written = io.StringIO()
    print_part(Part("p", 1.0, True, {}, [table(12), table(13)], ["the moon"]), Console(file=written, width=160))
    text = written.getvalue()
    assert "c11" in text and "c12" not in text
    assert "Of 13: 1 rows of 13 columns, in the report" in text
    assert "left out: the moon" in text


def test_the_least_disturbed_count_in_their_order() -> None:
    taken = [("a", 0.2), ("b", 0.5), ("c", 0.1), ("d", 0.3), ("e", 0.0)]
    assert least_disturbed(taken, 3, lambda each: each[1]) == [("a", 0.2), ("c", 0.1), ("e", 0.0)]
