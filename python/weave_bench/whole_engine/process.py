"""One engine in a process of its own: ``python -m weave_bench.whole_engine.process SPEC OUT``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weave_bench.whole_engine.plan import EnginePlan

_LOG_END = 1500


@dataclass(frozen=True)
class Measures:
    """What one engine took.

    Attributes:
        start: seconds until it was ready.
        kv_tokens: that its KV cache holds.
        prefill: prompt tokens -> milliseconds to the first token, one a repeat.
        decode: batch -> milliseconds a step, one a repeat.
    """

    start: float
    kv_tokens: int
    prefill: Mapping[int, Sequence[float]]
    decode: Mapping[int, Sequence[float]]


def vllm_is_here() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def measure_engine(model: Path, plan: EnginePlan, adapters: Sequence[Path], memory: int, scratch: Path) -> Measures:
    """Start an engine of `model`, measure, end it.

    Args:
        adapters: to be served; none for plain vLLM.
        memory: bytes for them.

    Raises:
        RuntimeError: the engine failed; the end of its log is in the message.
    """
    spec, out, log = scratch / "spec.json", scratch / "measures.json", scratch / "engine.log"
    options = {**plan.options, "model": str(model)}
    if adapters:
        options |= {"enable_lora": True, "max_loras": len(adapters), "max_cpu_loras": len(adapters)}
        options["additional_config"] = {"npu_weave": {"adapter_memory": memory}}
    asked = {key: getattr(plan, key) for key in ("prompts", "batches", "prompt", "steps", "repeats")}
    spec.write_text(json.dumps({"options": options, "adapters": [str(path) for path in adapters], **asked}))
    environment = dict(os.environ) if adapters else {**os.environ, "VLLM_PLUGINS": ""}
    with log.open("w") as output:
        command = [sys.executable, "-m", "weave_bench.whole_engine.process", str(spec), str(out)]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the engine ended with status {done.returncode}: {log.read_text()[-_LOG_END:]}")
    found = json.loads(out.read_text())
    for kind in ("prefill", "decode"):
        found[kind] = {int(size): taken for size, taken in found[kind].items()}
    return Measures(**found)


def main() -> None:
    """Measure as the spec in ``argv[1]`` says; write what was found to ``argv[2]``."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    begun = time.perf_counter()
    engine = _Engine(spec["options"], spec["adapters"])
    start = time.perf_counter() - begun
    prefill = {size: engine.prefill(size, spec["repeats"]) for size in spec["prompts"]}
    decode = {size: engine.decode(size, spec["prompt"], spec["steps"], spec["repeats"]) for size in spec["batches"]}
    Path(sys.argv[2]).write_text(json.dumps(asdict(Measures(start, engine.kv_tokens, prefill, decode))))


class _Engine:
    """vLLM's engine; request i asks adapter i in turn."""

    def __init__(self, options: Mapping[str, Any], adapters: Sequence[str]) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self._llm = LLM(
            load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False, dtype="bfloat16", **options
        )
        config: Any = self._llm.llm_engine.vllm_config
        self.kv_tokens: int = config.cache_config.num_gpu_blocks * config.cache_config.block_size
        self._vocabulary: int = config.model_config.get_vocab_size()
        self._adapters = [LoRARequest(Path(path).name, number, path) for number, path in enumerate(adapters, start=1)]
        self._draw = np.random.default_rng(0)
        self._seconds(max(1, len(adapters)), 8, 2)  # loads all of them, and warms up

    def prefill(self, tokens: int, repeats: int) -> list[float]:
        """Milliseconds to the one token of a request alone."""
        return [1e3 * self._seconds(1, tokens, 1) for _ in range(repeats + 1)][1:]

    def decode(self, batch: int, prompt: int, steps: int, repeats: int) -> list[float]:
        """Milliseconds a step: what `steps` more tokens of each request take longer than the first alone."""
        taken = []
        for _ in range(repeats + 1):
            first = self._seconds(batch, prompt, 1)
            taken.append(1e3 * (self._seconds(batch, prompt, 1 + steps) - first) / steps)
        return taken[1:]

    def _seconds(self, requests: int, prompt: int, tokens: int) -> float:
        from vllm import SamplingParams

        ids = self._draw.integers(self._vocabulary, size=(requests, prompt)).tolist()
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        count = len(self._adapters)
        adapters = [self._adapters[at % count] for at in range(requests)] if count else None
        prompts = [{"prompt_token_ids": each} for each in ids]
        begun = time.perf_counter()
        answers = self._llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)
        seconds = time.perf_counter() - begun
        got = sorted({len(answer.outputs[0].token_ids) for answer in answers})
        if got != [tokens]:
            raise RuntimeError(f"asked for {tokens} tokens a request, got {got}")
        return seconds


if __name__ == "__main__":
    main()
