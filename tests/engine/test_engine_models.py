"""Every supported model type beyond Qwen3-MoE, through a real engine: base and two adapters mixed in one batch.

Plain vLLM's answers for a tiny DeepSeek on a CPU depend on how many requests are in the batch and on the row of each:
plain vLLM itself gives other tokens when either changes. So composition and row are matched. The truth for an adapter
is plain vLLM on its merged checkpoint, serving the *whole* batch (same prompts, same order, same count), of which only
that adapter's rows are taken; the truth for the base model likewise. A salt keeps the cache entries of the targets
apart, as adapters keep them apart here. The other models are compared in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from fixtures.plain_vllm import GREEDY, PROMPTS, Answers, Batch, run_batch
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import memory_of, weave_engine
from safetensors import safe_open

pytestmark = pytest.mark.engine

KINDS = ("deepseek_v2", "deepseek_v3", "olmoe", "mixtral")
BASE = -1
TARGETS = (BASE, 0, 1)
LONGER = "longer than one block of the cache, " * 5
JOBS = [(prompt, target) for prompt in (*PROMPTS, LONGER) for target in TARGETS]
SETTINGS: dict[str, Any] = {"max_num_batched_tokens": 1024}


class Served(NamedTuple):
    """One model type: its plain answers by target to the whole batch, twice, and a running engine of ours."""

    kind: str
    family: TinyFamily
    truth: dict[int, Answers]
    engine: Any


@pytest.fixture(scope="module")
def truth(families: Any, plain: Any) -> dict[tuple[str, int], Answers]:
    """Plain vLLM's answers by model type and target; of all types, for one process starts their engines sooner."""
    salted = Batch([{"prompt": prompt, "cache_salt": str(target)} for prompt, target in JOBS])
    models = {}
    for kind in KINDS:
        family = families(kind, 2)
        models |= {(kind, BASE): family.base, (kind, 0): family.merged[0], (kind, 1): family.merged[1]}
    answers: dict[tuple[str, int], Answers] = plain(models, {"cold": salted, "warm": salted}, **SETTINGS)
    return answers


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, families: Any, truth: dict[tuple[str, int], Answers]) -> Iterator[Served]:
    family = families(request.param, 2)
    with weave_engine(family.base, max_loras=2, **SETTINGS) as engine:
        yield Served(request.param, family, {target: truth[request.param, target] for target in TARGETS}, engine)


def test_adapters_matter(served: Served) -> None:
    """In one and the same row, the three targets answer differently."""
    rows = zip(*(served.truth[target]["cold"] for target in TARGETS), strict=True)
    distinct = [len({answers[0].tokens for answers in row}) for row in rows]
    assert distinct.count(len(TARGETS)) > len(JOBS) / 2, distinct


def test_mixed_batch_equals_plain_vllm_on_merged_checkpoints(served: Served) -> None:
    """Twice, so that the second batch finds its long prompts in the prefix cache."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    loras = {
        target: None
        if target == BASE
        else LoRARequest(f"adapter{target}", target + 1, str(served.family.adapters[target]))
        for target in TARGETS
    }
    for lora in filter(None, loras.values()):
        # requests wait for adapters that are not loaded yet, and would join the batch later than the others
        assert served.engine.llm_engine.add_lora(lora)
    assert len(JOBS) == 21
    prompts, requests = [prompt for prompt, _ in JOBS], [loras[target] for _, target in JOBS]
    for state in ("cold", "warm"):
        answers = run_batch(served.engine, prompts, SamplingParams(**GREEDY), requests)
        expected = [served.truth[target][state][row] for row, (_, target) in enumerate(JOBS)]
        wrong = [JOBS[row] for row in range(len(JOBS)) if answers[row] != expected[row]]
        assert not wrong, f"{state}: {len(wrong)} of {len(JOBS)} requests differ: {wrong}"
    assert [(worker["adapters_resident"], worker["adapters_staged"]) for worker in memory_of(served.engine)] == [(2, 2)]


def test_checkpoint_has_what_its_type_is_tested_for(served: Served) -> None:
    """The tiny models keep the features that make their type special."""
    config = json.loads((served.family.base / "config.json").read_text())
    with safe_open(served.family.base / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        biases = [file.get_tensor(name) for name in sorted(names) if name.endswith("e_score_correction_bias")]
    if served.kind.startswith("deepseek"):
        assert config["kv_lora_rank"] and config["first_k_dense_replace"] == 1
        assert "model.layers.0.mlp.gate_proj.weight" in names, "a dense first layer"
        assert "model.layers.1.mlp.shared_experts.gate_proj.weight" in names
    if served.kind == "deepseek_v3":
        assert (config["scoring_func"], config["n_group"], config["topk_group"]) == ("sigmoid", 4, 2)
        assert len(biases) == 3 and all(bias.float().std() > 0.05 for bias in biases)
    else:
        assert not biases
