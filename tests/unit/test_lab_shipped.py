"""The shipped artefacts, measured again: bases fail at the adapters' tasks, adapters solve them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from weave_lab import artifacts
from weave_lab.checkpoint import adapter_tensors, load_base
from weave_lab.evaluate import accuracy, load_transformers
from weave_lab.relevance import measure, select
from weave_lab.tasks import by_name, generate
from weave_lab.train import RELEVANCE_EXAMPLES

COUNT = 20


@pytest.fixture(scope="module")
def models():
    path = artifacts.shipped()
    assert artifacts.is_complete(path), f"the repository ships {path.name}; it is missing or incomplete"
    return path


@pytest.fixture(scope="module")
def report(models):
    return json.loads((models / "report.json").read_text())


def adapters():
    return sorted(path.name for path in (artifacts.shipped() / "adapters").iterdir())


def test_there_are_enough_adapters_and_the_whole_is_small(models, report):
    assert len(adapters()) >= 3 and set(adapters()) == set(report["adapters"])
    assert {row["score"] for row in report["adapters"].values()} == {"token", "gate"}
    assert sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) <= 12e6
    counts = [tuple(row["experts_per_layer"]) for row in report["adapters"].values()]
    assert len(set(counts)) > 1 and sum(len(set(count)) > 1 for count in counts) >= 3


@pytest.mark.parametrize("name", adapters())
def test_adapter_solves_its_task_and_base_does_not(models, name):
    task = by_name(name)
    base, tokenizer = load_transformers(models / "base")
    assert accuracy(base, tokenizer, task, COUNT) <= 0.3
    tuned, _ = load_transformers(models / "base", models / "adapters" / name)
    assert accuracy(tuned, tokenizer, task, COUNT) >= 0.85


def test_base_has_learned_its_own_tasks(models):
    base, tokenizer = load_transformers(models / "base")
    scores = {name: accuracy(base, tokenizer, by_name(name), COUNT) for name in ("copy", "upper", "payee", "nordic")}
    assert all(score >= 0.8 for score in scores.values()), scores


@pytest.mark.parametrize("name", adapters())
def test_adapter_directory_is_esft(models, report, name):
    directory = models / "adapters" / name
    config = json.loads((directory / "expert_cfg.json").read_text())
    assert config["shared_experts"] is False and config["non_expert_modules"] is False
    expected = {f"model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"
                for layer, experts in config["experts"].items() for expert in experts
                for matrix in ("gate", "up", "down")}  # fmt: skip
    with safe_open(models / "base" / "model.safetensors", "pt") as base:
        tensors = adapter_tensors(directory)
        assert set(tensors) == expected
        for key, tensor in tensors.items():
            assert tensor.dtype == torch.bfloat16 and list(tensor.shape) == base.get_slice(key).get_shape()
        changed = [not torch.equal(base.get_tensor(key), tensor) for key, tensor in tensors.items()]
    assert all(changed)


@pytest.mark.parametrize("name", adapters())
def test_adapter_holds_the_experts_its_scores_name(models, report, name):
    recipe = report["adapters"][name]
    relevance = measure(
        load_base(models / "base"), generate(by_name(name), RELEVANCE_EXAMPLES, report["seed"], "train")
    )
    choice = select(relevance.token if recipe["score"] == "token" else relevance.gate, recipe["threshold"])
    recorded = {int(layer): set(experts) for layer, experts in recipe["experts"].items()}
    # another processor rounds differently, so an expert at the very threshold may come or go
    for layer, experts in choice.items():
        assert len(set(experts) ^ recorded[layer]) <= 1, layer
