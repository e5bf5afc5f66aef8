"""Trains the base model and all adapters, and writes a report.

``python -m weave_lab.train [--out models/weave-tiny] [--seed 0] [--quick] [--threads 2] [--base DIR]``

The output directory gets ``base/``, ``adapters/<task>/`` and, last of all, ``report.json``. The same seed on the same
machine and versions gives the same files; other processors round differently.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weave_lab.batches import packed_batches
from weave_lab.checkpoint import ExpertChoice, load_base, save_adapter, save_base
from weave_lab.esft import train_adapter
from weave_lab.evaluate import accuracy, adapter_accuracies, load_transformers
from weave_lab.fit import Schedule, fit
from weave_lab.model import ModelShape, MoELanguageModel
from weave_lab.relevance import Score, measure, select
from weave_lab.tasks import ADAPTER_TASKS, BASE_TASKS, MIXTURE, by_name, generate

RELEVANCE_EXAMPLES = 64


@dataclass(frozen=True)
class AdapterRecipe:
    """How one adapter is made: which score picks its experts, up to which threshold, and how long it trains."""

    score: Score
    threshold: float
    schedule: Schedule


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the artefacts, besides the seed."""

    shape: ModelShape
    base: Schedule
    adapters: dict[str, AdapterRecipe]
    evaluation_count: int = 100


def full_recipe() -> Recipe:
    """The recipe of the shipped artefacts: about a quarter of an hour on two cores."""
    adapter = Schedule(steps=250, rows=16, length=128, matrix_rate=0.02)
    return Recipe(
        shape=ModelShape(),
        base=Schedule(steps=900, rows=32, length=128, matrix_rate=0.02, balance=0.01),
        adapters={
            "cipher": AdapterRecipe("token", 0.50, adapter),
            "intent": AdapterRecipe("gate", 0.40, adapter),
            "record": AdapterRecipe("token", 0.40, replace(adapter, steps=450, rows=32)),
            "island": AdapterRecipe("gate", 0.50, adapter),
        },
    )


def quick_recipe() -> Recipe:
    """The same steps at a scale that ends within a minute and learns little: to see that all of it runs."""
    adapter = Schedule(steps=30, rows=8, length=64, matrix_rate=0.02)
    return Recipe(
        shape=ModelShape(hidden=64, experts=16, top_k=2, expert_width=32, heads=2, kv_heads=1),
        base=Schedule(steps=40, rows=8, length=96, matrix_rate=0.02, balance=0.01),
        adapters={task.name: AdapterRecipe("token", 0.4, adapter) for task in ADAPTER_TASKS},
        evaluation_count=10,
    )


def train_base(recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """Pretrains a base model from scratch into `out` and returns its part of the report."""
    torch.manual_seed(seed)
    model = MoELanguageModel(recipe.shape)
    schedule = recipe.base
    started = time.perf_counter()
    losses = fit(model, packed_batches(MIXTURE, seed, schedule.rows, schedule.length), schedule, "base model")
    save_base(model, out)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "schedule": asdict(schedule),
    }


def train_one_adapter(base: Path, name: str, recipe: AdapterRecipe, out: Path, seed: int) -> dict[str, Any]:
    """Picks the experts of one task, trains them on top of the base in `base`, and returns its part of the report."""
    torch.manual_seed(seed)
    task = by_name(name)
    started = time.perf_counter()
    model = load_base(base)
    relevance = measure(model, generate(task, RELEVANCE_EXAMPLES, seed, "train"))
    choice = select(relevance.token if recipe.score == "token" else relevance.gate, recipe.threshold)
    losses = train_adapter(model, task, choice, recipe.schedule, seed)
    save_adapter(model, choice, out)
    return {
        "score": recipe.score,
        "threshold": recipe.threshold,
        "experts_per_layer": [len(choice[layer]) for layer in sorted(choice)],
        "experts": _as_json(choice),
        "bytes": (out / "model.safetensors").stat().st_size,
        "seconds": round(time.perf_counter() - started, 1),
        "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "schedule": asdict(recipe.schedule),
    }


def train_all(recipe: Recipe, out: Path, seed: int, base: Path | None = None) -> dict[str, Any]:
    """Makes base, adapters and ``report.json`` under `out`, replacing what is there.

    Args:
        recipe: what to make.
        out: output directory.
        seed: seeds parameters and data.
        base: an already trained ``base/`` directory with its ``report.json`` beside it, to train only adapters.

    Returns:
        The report, as written.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)
    if base is None:
        base_report = train_base(recipe, _empty(out / "base"), seed)
        base_report["accuracy"] = _base_accuracies(out / "base", recipe.evaluation_count)
    else:
        base_report = json.loads((base.parent / "report.json").read_text())["base"]
        if base.resolve() != (out / "base").resolve():
            shutil.copytree(base, _empty(out / "base"), dirs_exist_ok=True)
    _empty(out / "adapters")
    adapters = {
        name: train_one_adapter(out / "base", name, one, out / "adapters" / name, seed)
        for name, one in recipe.adapters.items()
    }
    for name, row in adapter_accuracies(out, recipe.evaluation_count).items():
        adapters[name]["accuracy"] = row
    report = {
        "seed": seed,
        "evaluation_examples": recipe.evaluation_count,
        "base": base_report | {"shape": asdict(recipe.shape)},
        "adapters": adapters,
        "total_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}
        | {"python": platform.python_version()},
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _base_accuracies(base: Path, count: int) -> dict[str, float]:
    model, tokenizer = load_transformers(base)
    answerable = [task for task in BASE_TASKS if task.name != "story"]
    return {task.name: accuracy(model, tokenizer, task, count) for task in answerable}


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _as_json(choice: ExpertChoice) -> dict[str, list[int]]:
    return {str(layer): experts for layer, experts in sorted(choice.items())}


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(prog="python -m weave_lab.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/weave-tiny"), help="output directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny scale, under a minute: only shows that it runs")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--base", type=Path, help="take this trained base directory and train only the adapters")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = quick_recipe() if arguments.quick else full_recipe()
    report = train_all(recipe, arguments.out, arguments.seed, arguments.base)
    print(f"base model: {report['base']['parameters']:,} parameters, {report['base']['seconds']} s")
    print(f"{'adapter':<10}{'score':<7}{'experts per layer':<22}{'MB':>6}{'base':>7}{'adapter':>9}")
    for name, row in report["adapters"].items():
        counts = " ".join(map(str, row["experts_per_layer"]))
        rates = f"{row['accuracy']['base']:>7.0%}{row['accuracy']['adapter']:>9.0%}"
        print(f"{name:<10}{row['score']:<7}{counts:<22}{row['bytes'] / 1e6:>6.2f}{rates}")


if __name__ == "__main__":
    main()
