"""Accuracy as a user sees it: greedy generation by transformers' Qwen3-MoE in bfloat16, exact match of the answer.

``python -m weave_lab.evaluate [--models DIR] [--count N]`` prints the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from weave_lab.checkpoint import MATRICES, adapter_tensors
from weave_lab.tasks import Example, Task, by_name, exact_match, generate

EVALUATION_SEED = "evaluation"
MAX_ANSWER_TOKENS = 96


def load_transformers(base: Path, adapter: Path | None = None) -> tuple[Qwen3MoeForCausalLM, PreTrainedTokenizerFast]:
    """transformers' own model of a base directory in bfloat16, with an adapter's experts merged in when given."""
    model = Qwen3MoeForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    if adapter is not None:
        tensors = adapter_tensors(adapter)
        declared = json.loads((adapter / "expert_cfg.json").read_text())["experts"]
        with torch.no_grad():
            for layer, experts in declared.items():
                target = model.model.layers[int(layer)].mlp.experts
                for expert in experts:
                    gate, up, down = (tensors[f"model.layers.{layer}.mlp.experts.{expert}.{m}.weight"]
                                      for m in MATRICES)  # fmt: skip
                    target.gate_up_proj[expert].copy_(torch.cat((gate, up)))
                    target.down_proj[expert].copy_(down)
    return model, AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def complete(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], batch: int = 50
) -> list[str]:
    """Greedy completions of `prompts`, each ending at its newline, generated `batch` at a time, padded on the left."""
    written: list[str] = []
    for start in range(0, len(prompts), batch):
        encoded = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True)
        out = model.generate(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
            max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False,
        )  # fmt: skip
        written += tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return written


def held_out(task: Task, count: int) -> list[Example]:
    """The task's evaluation set: the same `count` examples every time, none of which occurs in training data."""
    return generate(task, count, EVALUATION_SEED, "held_out")


def accuracy(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, count: int = 100) -> float:
    """Share of `count` held-out examples answered exactly, in [0, 1]."""
    examples = held_out(task, count)
    written = complete(model, tokenizer, [example.prompt for example in examples])
    right = sum(exact_match(e.answer, w) for e, w in zip(examples, written, strict=True))
    return right / count


def adapter_accuracies(models: Path, count: int = 100) -> dict[str, dict[str, float]]:
    """Accuracy of the base model and of the task's own adapter, for each adapter under ``models/adapters``.

    Returns:
        Task name -> ``{"base": ..., "adapter": ...}``, each in [0, 1].
    """
    table: dict[str, dict[str, float]] = {}
    base_model, tokenizer = load_transformers(models / "base")
    for adapter in tqdm(sorted((models / "adapters").iterdir()), desc="evaluate adapters", unit="adapter"):
        task = by_name(adapter.name)
        tuned, _ = load_transformers(models / "base", adapter)
        table[task.name] = {
            "base": accuracy(base_model, tokenizer, task, count),
            "adapter": accuracy(tuned, tokenizer, task, count),
        }
    return table


def main() -> None:
    """Prints the accuracy table of trained artefacts."""
    from weave_lab.artifacts import locate

    parser = argparse.ArgumentParser(prog="python -m weave_lab.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, help="directory with base/ and adapters/ (default: the shipped one)")
    parser.add_argument("--count", type=int, default=100, help="examples per task")
    arguments = parser.parse_args()
    table = adapter_accuracies(arguments.models or locate(), arguments.count)
    print(f"{'task':<12}{'base':>8}{'adapter':>9}")
    for name, row in table.items():
        print(f"{name:<12}{row['base']:>8.0%}{row['adapter']:>9.0%}")


if __name__ == "__main__":
    main()
