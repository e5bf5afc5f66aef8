"""What is served, and how much is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npu_weave.residency.plan_paper import PAPER_MODEL

ARCHITECTURES: Mapping[str, str] = {"deepseek_v2": "DeepseekV2ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


@dataclass(frozen=True)
class EnginePlan:
    """One model, and what is asked of its engines.

    Attributes:
        model: its config; ``model_type`` is one of `ARCHITECTURES`.
        options: vLLM's engine arguments, for every engine.
        adapters: numbers of adapters that an engine serves; each is an engine of its own.
        prompts: tokens of prompts that are prefilled one at a time.
        batches: requests that decode together, all adapters in turn.
        prompt, steps: of these requests, prompt tokens and timed steps.
        repeats: of every measure, in each of `rounds` engines of one kind.
        rounds: in which all engines are started one after the other.
    """

    model: Mapping[str, Any]
    options: Mapping[str, Any]
    adapters: tuple[int, ...] = (5, 10, 20)
    prompts: tuple[int, ...] = (128, 512, 2048)
    batches: tuple[int, ...] = (1, 8, 32, 64)
    prompt: int = 1024
    steps: int = 128
    repeats: int = 10
    rounds: int = 2

    def describe(self) -> str:
        """For people."""
        return (
            f"a whole engine of DeepSeek-V2-Lite's geometry at full depth with dummy weights, graphs on; base model "
            f"alone against {', '.join(map(str, self.adapters))} adapters that tune as many experts as the published "
            f"ones; time to the first token of prompts of {', '.join(map(str, self.prompts))} tokens, time of a decode "
            f"step at batches of {', '.join(map(str, self.batches))}, and KV capacity; {self.repeats} repeats in each "
            f"of {self.rounds} engines of a kind, one after the other"
        )


_OPTIONS = {"max_model_len": 4096, "max_num_seqs": 256, "gpu_memory_utilization": 0.9}

FULL = EnginePlan(PAPER_MODEL, _OPTIONS)
QUICK = EnginePlan(PAPER_MODEL, _OPTIONS, adapters=(10,), prompts=(512,), batches=(1, 32), steps=64, rounds=1)
