"""Runs of benchmarks as files, and the report made of one."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import msgspec
import pytest

from weave_bench import machine
from weave_bench.aims import AIMS, findings
from weave_bench.figures import FIGURES
from weave_bench.report import write_report
from weave_bench.results import SCHEMA, Origin, Part, Row, Run, Spread, Table, ratios, read_run, spread, write_run


def run_of(*tables: Table, left_out: tuple[str, ...] = ()) -> Run:
    part = Part("memory", 90.0, True, {"layers": 2, "kinds": ["a", "b"]}, tables, left_out)
    run = Run(SCHEMA)
    run.add(part, Origin({"cores": 2}, {"python": "3.11"}, "abc", "2026-01-02T03:04:05+00:00", 0.25))
    return run


TABLE = Table(
    "capacity",
    "Cache",
    {"weights": "GiB", "KV tokens": "tokens"},
    [
        Row({"adapters": 1, "design": "mapped"}, {"weights": Spread(2.5, 2.0, 3.0, 9), "KV tokens": 1234567.0}),
        Row({"adapters": 2, "design": "mapped"}, {"weights": Spread(4.0, 4.0, 4.0, 1), "KV tokens": None}),
    ],
    "What it shows.",
)


def test_spread_is_median_and_quarters() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0]
    found = spread(values)
    assert (found.median, found.repeats) == (statistics.median(values), 7)
    assert (found.low, found.high) == (2.5, 6.0)
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0, 1)


def test_ratios_are_taken_within_a_repeat() -> None:
    """Both drift threefold; their ratio does not."""
    slower = [2.0, 4.0, 6.0]
    assert ratios(slower, [1.0, 2.0, 3.0]) == Spread(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError):
        ratios(slower, [1.0, 2.0])


def test_a_median_of_nothing_settled_is_not_told(tmp_path: Path) -> None:
    values = {"weights": Spread(9.0, 1.0, 20.0, 4), "KV tokens": Spread(0.0, 0.0, 2.0, 4)}
    wild = Table("wild", "Wild", dict.fromkeys(values, "x"), [Row({"what": "it"}, values)])
    text = write_report(run_of(wild), tmp_path / "report.md")[0].read_text()
    assert "| it | unsettled (1 ... 20) | unsettled (0 ... 2) |" in text
    assert "9" not in text.split("| it |")[1].split("\n")[0]


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    run, path = run_of(TABLE, left_out=("this",)), tmp_path / "deep" / "run.json"
    write_run(run, path)
    assert msgspec.json.encode(read_run(path)) == msgspec.json.encode(run)
    assert list(path.parent.iterdir()) == [path]


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = run_of(TABLE)
    run.schema = SCHEMA + 1
    write_run(run, path)
    with pytest.raises(ValueError, match=f"schema {SCHEMA + 1}"):
        read_run(path)
    path.write_text('{"parts": {}}')
    with pytest.raises(msgspec.ValidationError):
        read_run(path)


def test_the_report_has_every_value_and_its_figures(tmp_path: Path) -> None:
    plain = Table("unknown", "Another", {"x": "seconds"}, [Row({"what": "it"}, {"x": 0.125})])
    written = write_report(run_of(TABLE, plain, left_out=("the moon: too far",)), tmp_path / "report.md")
    text = written[0].read_text()
    assert "| 1 | mapped | 2.5 (2 ... 3) | 1,234,567 |" in text
    assert "| 2 | mapped | 4 |  |" in text
    assert "| it | 0.125 |" in text
    assert "- Left out: the moon: too far" in text
    assert "quick" in text and "layers: 2; kinds: a, b" in text
    machine = "cores 2; the host gave 25.0% of the cores to others meanwhile"
    assert f"| memory | 2026-01-02 | `abc` | {machine} | python 3.11 |" in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures == ["report/capacity.svg"] and (tmp_path / pictures[0]).stat().st_size > 1000
    assert [path.name for path in written] == ["report.md", "capacity.svg"]


def steps_run(own: float, *ratios: Spread) -> Run:
    labels = {"comparison": "x", "step": "decode", "tokens": 1}
    noise = Spread(1.0, 0.95, 1.06, 360)
    rows = [Row(labels, {"ratio": ratio, "noise": noise}) for ratio in ratios]
    parity = Table("parity", "Parity", {"ratio": "", "noise": ""}, rows)
    columns = dict.fromkeys(FIGURES["own-work"].columns, "us")
    rows = [
        Row({"requests": count}, {**dict.fromkeys(columns, 1.0), "reroute": own + count - 32}) for count in (32, 256)
    ]
    return run_of(parity, Table("own-work", "Own work", columns, rows))


def test_the_report_says_which_aims_hold(tmp_path: Path) -> None:
    run = steps_run(20.0, Spread(1.02, 0.99, 1.04, 60), Spread(0.9, 0.8, 0.95, 60), Spread(1.2, 1.1, 1.3, 60))
    text = write_report(run, tmp_path / "report.md")[0].read_text()
    assert "| parity: 1 is within the quarters of the ratio | 1 | 0.9 to 1.2 | 1 of 3 |" in text
    assert "| parity: the ratio is within the noise of equal copies | 1 | 0.9 to 1.2 | 1 of 3 |" in text
    assert "| own work, us a layer | at most 20 | 20 | 1 of 1 |" in text, "batches of 32 requests at most"
    assert "memory over the exact need" not in text, "there is nothing about it in this run"


def test_an_aim_that_is_missed_does_not_hold() -> None:
    found = {each.aim.column: each for each in findings(steps_run(20.1))}
    assert (found["reroute"].held, found["reroute"].rows) == (0, 1) and "ratio" not in found


def test_at_least_is_not_at_most() -> None:
    gain = next(aim for aim in AIMS if aim.least and aim.bound == 1.18)
    labels = {"system": "npu-weave", "model": "wide", "load": 1.5, "alpha": 0.3}
    judged = [gain.judge(Row(labels, {gain.column: median})) for median in (1.18, 1.17, None)]
    assert judged == [(1.18, True), (1.17, False), None]


def test_the_machine_is_described() -> None:
    assert int(str(machine.describe_machine()["cores"])) > 0
    assert {"python", "torch", "npu-weave"} <= machine.describe_versions().keys()
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", machine.commit())
