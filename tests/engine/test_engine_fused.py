"""Gating and rerouting as one operator, through a real engine: base and two adapters mixed in one batch.

The truth is plain vLLM on merged checkpoints, whose routers answer as the operator does (`fixtures.operator_router`);
composition and rows are matched, see test_engine_models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from fixtures.plain_vllm import GREEDY, PROMPTS, Answer, Batch, run_batch
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import weave_engine

pytestmark = pytest.mark.engine

BASE = -1
TARGETS = (BASE, 0, 1)
JOBS = [(prompt, target) for prompt in PROMPTS for target in TARGETS]
SETTINGS: dict[str, Any] = {
    "max_num_batched_tokens": 1024,
    "worker_extension_cls": "fixtures.operator_router.OperatorRouter",
}


class Served(NamedTuple):
    """Plain answers by target to the whole batch, and a running engine of ours."""

    family: TinyFamily
    truth: dict[int, list[list[Answer]]]
    engine: Any


@pytest.fixture(scope="module")
def served(families: Any, plain: Any) -> Iterator[Served]:
    """DeepSeek-V3, whose routers use every setting: sigmoid, bias, groups, renormalisation, a factor."""
    family = families("deepseek_v3", 2)
    salted = Batch([{"prompt": prompt, "cache_salt": str(target)} for prompt, target in JOBS])
    models = {BASE: family.base, 0: family.merged[0], 1: family.merged[1]}
    truth = plain(models, {"batch": salted}, **SETTINGS)
    with weave_engine(family.base, max_loras=2, **SETTINGS) as engine:
        yield Served(family, {target: answers["batch"] for target, answers in truth.items()}, engine)


def test_a_mixed_batch_equals_plain_vllm_and_no_router_is_asked(served: Served) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    loras = {
        target: None
        if target == BASE
        else LoRARequest(f"adapter{target}", target + 1, str(served.family.adapters[target]))
        for target in TARGETS
    }
    for lora in filter(None, loras.values()):
        assert served.engine.llm_engine.add_lora(lora)
    before = served.engine.collective_rpc("router_calls")
    assert before > [0], "the comparison at start-up"
    prompts, requests = [prompt for prompt, _ in JOBS], [loras[target] for _, target in JOBS]
    answers = run_batch(served.engine, prompts, SamplingParams(**GREEDY), requests)
    wrong = [JOBS[row] for row, (_, target) in enumerate(JOBS) if answers[row] != served.truth[target][row]]
    assert not wrong, f"{len(wrong)} of {len(JOBS)} requests differ: {wrong}"
    assert served.engine.collective_rpc("router_calls") == before
    distinct = {tuple(served.truth[target][0][0].tokens) for target in TARGETS}
    assert len(distinct) == len(TARGETS), "adapters matter"
