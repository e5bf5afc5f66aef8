"""A whole training run in small: the files and the report it leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from weave_lab import artifacts, evaluate
from weave_lab.fit import Schedule
from weave_lab.tasks import ADAPTER_TASKS
from weave_lab.train import AdapterRecipe, full_recipe, quick_recipe, train_all


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_ANSWER_TOKENS", 3)
    short = Schedule(steps=2, rows=2, length=96)
    adapters = {"cipher": AdapterRecipe("token", 0.3, short), "intent": AdapterRecipe("gate", 0.5, short)}
    return replace(quick_recipe(), base=replace(short, balance=0.01), adapters=adapters, evaluation_count=2)


def test_run_leaves_base_adapters_and_report(tiny, tmp_path):
    report = train_all(tiny, tmp_path / "first", seed=4)
    assert artifacts.is_complete(tmp_path / "first")
    assert report == json.loads((tmp_path / "first" / "report.json").read_text())
    assert report["seed"] == 4 and len(report["base"]["accuracy"]) >= 10
    for name, row in report["adapters"].items():
        assert set(row["accuracy"]) == {"base", "adapter"}
        config = json.loads((tmp_path / "first" / "adapters" / name / "expert_cfg.json").read_text())
        assert config["experts"] == {layer: experts for layer, experts in row["experts"].items() if experts}
        tensors = load_file(tmp_path / "first" / "adapters" / name / "model.safetensors")
        assert len(tensors) == 3 * sum(row["experts_per_layer"])

    again = train_all(tiny, tmp_path / "second", seed=4, base=tmp_path / "first" / "base")
    assert again["base"] == report["base"]
    for name in tiny.adapters:
        assert again["adapters"][name]["experts"] == report["adapters"][name]["experts"]
        for part in ("base", f"adapters/{name}"):
            one, two = ((tmp_path / run / part / "model.safetensors").read_bytes() for run in ("first", "second"))
            assert one == two, part


def test_recipes_cover_the_adapter_tasks():
    for recipe in (full_recipe(), quick_recipe()):
        assert set(recipe.adapters) == {task.name for task in ADAPTER_TASKS}
    assert {one.score for one in full_recipe().adapters.values()} == {"token", "gate"}
