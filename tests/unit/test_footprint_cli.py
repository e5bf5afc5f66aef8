"""`npu-weave memory`: tables, JSON, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fixtures.adapters import write_adapter, write_base
from typer.testing import CliRunner

from npu_weave.cli import memory as command
from npu_weave.cli.main import app
from npu_weave.residency.footprint_source import GEOMETRIES

PAGE = 2 << 20
EXPERT = 3 * 4 * 6 * 2


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and two adapters; the geometry is narrow, so that all of its depth fits anywhere."""
    small = tmp_path / "small"
    write_base(small / "base")
    write_adapter(small / "adapters/first", {1: [3, 0], 2: [4]})
    write_adapter(small / "adapters/second", {2: [1]})
    narrow = replace(GEOMETRIES["deepseek-v2-lite"], hidden_size=32, moe_intermediate_size=16)
    monkeypatch.setitem(GEOMETRIES, "deepseek-v2-lite", narrow)
    monkeypatch.setattr(command, "SMALL_MODEL", small)
    return small


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["memory", *map(str, arguments)], env={"COLUMNS": "200"})


def run_json(*arguments: object) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    reports = json.loads(result.stdout)["reports"]
    assert isinstance(reports, list)
    return reports


def test_model_and_adapters(files: Path) -> None:
    adapters = files / "adapters"
    (report,) = run_json("--base", files / "base", "--adapter", adapters / "second", "--adapter", adapters / "first")
    assert (report["expert_sets"], report["e_max"], report["page_bytes"]) == ("adapters", 2, PAGE)
    assert report["layers"] == {"measured": [1, 2], "all": [1, 2]}
    assert report["geometry"]["num_experts"] == 5
    assert [(step["adapters"], step["added"]) for step in report["measured"]] == [
        (0, None),
        (1, "second"),
        (2, "first"),
    ]
    last = report["measured"][2]
    shmem, waste = last.pop("rss_shmem_bytes"), last.pop("waste")
    assert last == {
        "adapters": 2,
        "added": "first",
        "experts": 4,
        "exact_bytes": 14 * EXPERT,
        "driver_bytes": 4 * PAGE,
        "padded_bytes": 2 * (5 + 2 * 2) * EXPERT,
        "fragmentation": pytest.approx(18 / 14),
        "merged_bytes": 2 * 10 * EXPERT,
    }
    assert waste == pytest.approx(4 * PAGE / (14 * EXPERT) - 1)
    assert shmem == pytest.approx(4 * PAGE, abs=PAGE / 4)
    assert report["computed_for_all_layers"][2]["paged_bytes"] == 4 * PAGE
    assert report["reserved_bytes"] == 4 * PAGE
    assert report["after_unloading"]["driver_bytes"] == 4 * PAGE
    assert (report["after_closing"]["pages"], report["after_closing"]["reservations"]) == (0, 0)


def test_without_arguments_it_measures_the_small_model_and_the_geometry(files: Path) -> None:
    model, geometry = run_json()
    assert [step["added"] for step in model["measured"]] == [None, "first", "second"]
    assert geometry["expert_sets"] == "synthetic"
    assert len(geometry["measured"]) == 11
    assert geometry["layers"]["measured"] == list(range(1, 27))
    # the number of layers is for the geometry; the small model has only two
    model, geometry = run_json("--layers", 3)
    assert (len(model["layers"]["measured"]), len(geometry["layers"]["measured"])) == (2, 3)


def test_without_the_small_model_it_says_so(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SMALL_MODEL", files / "nowhere")
    monkeypatch.setattr(command, "CACHED_MODEL", files / "nowhere")
    result = run("--layers", 1)
    assert result.exit_code == 0
    assert "no small model in" in result.stderr
    assert result.stdout.count("Expert weights of") == 1


def test_the_small_model_may_be_in_the_cache(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SMALL_MODEL", files / "nowhere")
    (files.parent / "npu-weave").mkdir()
    files.rename(files.parent / "npu-weave/weave-tiny")
    monkeypatch.setenv("XDG_CACHE_HOME", str(files.parent))
    model, _ = run_json("--layers", 1)
    assert [step["added"] for step in model["measured"]] == [None, "first", "second"]


def test_tables_say_what_is_measured_and_what_is_not(files: Path) -> None:
    text = run("--geometry", "deepseek-v2-lite", "--layers", 2).stdout
    assert "SYNTHETIC" in text
    assert "MEASURED: ONLY 2 of 26 MoE layers" in text
    assert "COMPUTED, not measured: all 26 MoE layers" in text
    assert "10 + token-translation" in text
    assert "1.503" in text
    assert "0 (driver)  0 (RssShmem)" in text
    whole = run("--base", files / "base").stdout
    assert "MEASURED: all 2 MoE layers" in whole
    assert "COMPUTED" not in whole
    assert "SYNTHETIC" not in whole


def test_expert_configurations(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "some_task.json"
    path.write_text(json.dumps({"experts": {"1": [1, 2, 3]}}))
    (report,) = run_json("--geometry", "deepseek-v2-lite", "--expert-config", path)
    assert (report["expert_sets"], report["e_max"]) == ("expert configurations", 3)
    assert [(step["added"], step["experts"]) for step in report["measured"]] == [(None, 0), ("some_task", 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["--adapter", "{}/adapters/first"], "FOOTPRINT_ARGUMENT", 2),
        (["--expert-config", "{}/adapters/first/expert_cfg.json"], "FOOTPRINT_ARGUMENT", 2),
        (["--geometry", "unheard-of"], "FOOTPRINT_ARGUMENT", 2),
        (["--base", "{}/base", "--layers", "3"], "FOOTPRINT_ARGUMENT", 2),
        (["--geometry", "deepseek-v2-lite", "--layers", "0"], "FOOTPRINT_ARGUMENT", 2),
        (["--base", "{}/nothing"], "CHECKPOINT_NOT_FOUND", 8),
        (["--base", "{}/base", "--adapter", "{}/nothing"], "ADAPTER_NOT_FOUND", 3),
        (["--geometry", "deepseek-v2-lite", "--expert-config", "{}/base/config.json"], "EXPERT_CONFIG_INVALID", 3),
    ],
)
def test_refusals(files: Path, arguments: list[str], code: str, exit_code: int) -> None:
    filled = [argument.format(files) for argument in arguments]
    as_json = run(*filled, "--json")
    assert as_json.exit_code == exit_code
    assert json.loads(as_json.stdout)["error"]["code"] == code
    as_text = run(*filled)
    assert (as_text.exit_code, as_text.stdout) == (exit_code, "")
    assert as_text.stderr.startswith(f"error [{code}]")
