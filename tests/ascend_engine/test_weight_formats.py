"""Adapters where expert weights lie in FRACTAL_NZ, as W8A8_DYNAMIC and in bfloat16, on an emulated runtime.

One checkpoint has both, by layer. The truth is vllm-ascend without npu-weave on merged checkpoints. On one NPU an
engine that is asked for the same prompts in the same batches rounds as ours does, and answers agree in every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.ascend_engine import STOCK_PLUGINS, Answer, answers, ascend_engine, in_own_process
from fixtures.quantised_models import quantise_checkpoint
from fixtures.tiny_models import TinyFamily
from fixtures.weave_ascend import NEWEST_RELEASE, weave_ascend_engine

pytestmark = pytest.mark.ascend_engine

BASE, TOKENS = -1, 8
TARGETS = (BASE, 0, 1)
PROMPTS = ("hello world", "MoE", "the quick brown fox", "0123456789 longer than a step takes " * 3)
JOBS = [(prompt, target) for prompt in range(len(PROMPTS)) for target in TARGETS]
ENGINE = {
    "dtype": "bfloat16",
    "max_num_batched_tokens": 48,
    "max_num_seqs": len(JOBS),
    "num_gpu_blocks_override": 64,
    "additional_config": {"weight_nz_mode": 2},  # unquantised layers in FRACTAL_NZ too
}
OURS = {
    **ENGINE,
    "enable_lora": True,
    "max_loras": 2,
    "max_cpu_loras": 2,
    "additional_config": {"npu_weave": {"adapter_rows": 12}, **ENGINE["additional_config"]},
}
PLAIN_LAYERS = (1, 3)
EXPERT_PARALLEL = {"tensor_parallel_size": 2, "enable_expert_parallel": True}


class Given(NamedTuple):
    """What an engine gave to all jobs.

    Attributes:
        prompts: log-probabilities of each prompt's own tokens, but for the first.
    """

    answers: list[Answer]
    prompts: list[tuple[float, ...]]


def given_by(llm: Any, lora_requests: Any = None) -> Given:
    from vllm import SamplingParams

    prompts = [PROMPTS[prompt] for prompt, _ in JOBS]
    free = answers(llm, prompts, TOKENS, lora_requests)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    found = llm.generate(prompts, params, lora_request=lora_requests, use_tqdm=False)
    return Given(
        free,
        [
            tuple(
                step[token].logprob
                for step, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
            )
            for output in found
        ],
    )


def stock(checkpoint: Path) -> Given:
    """vllm-ascend as it is, whatever the jobs' targets. For `in_own_process`."""
    with ascend_engine(checkpoint, **ENGINE) as llm:
        return given_by(llm)


def requests_for(llm: Any, adapters: tuple[Path, ...]) -> list[Any]:
    """Loads the adapters; for each job what names its own."""
    from vllm.lora.request import LoRARequest

    loaded = [LoRARequest(f"adapter{n}", n + 1, str(path)) for n, path in enumerate(adapters)]
    for adapter in loaded:
        assert llm.llm_engine.add_lora(adapter)
    return [None if target == BASE else loaded[target] for _, target in JOBS]


def ours(base: Path, adapters: tuple[Path, ...]) -> tuple[Given, dict[str, int]]:
    """Our answers, and the worker's memory after its own checks. For `in_own_process`."""
    with ascend_engine(base, plugins=(*STOCK_PLUGINS, "npu_weave"), **OURS) as llm:
        given = given_by(llm, requests_for(llm, adapters))
        return given, llm.collective_rpc(lambda worker: worker.model_runner.lora_manager.memory())[0]


class Made(NamedTuple):
    adapters: tuple[Path, ...]
    base: Path
    truth: dict[int, Given]


@pytest.fixture(scope="module")
def made(families: Callable[..., TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Made:
    family, root = families("qwen3_moe", 2), tmp_path_factory.mktemp("quantised")
    checkpoints = {
        target: quantise_checkpoint(path, root / str(target), plain_layers=PLAIN_LAYERS)
        for target, path in zip(TARGETS, (family.base, *family.merged), strict=True)
    }
    truth = {target: in_own_process(stock, path) for target, path in checkpoints.items()}
    return Made(family.adapters, checkpoints[BASE], truth)


def joined(prompts: list[tuple[float, ...]], numbers: list[int]) -> tuple[float, ...]:
    return tuple(value for number in numbers for value in prompts[number])


def distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The mean difference of log-probabilities."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def test_mixed_batches_equal_merged_checkpoints(made: Made) -> None:
    given, memory = in_own_process(ours, made.base, made.adapters)
    wrong = {
        job: (given.answers[number], made.truth[job[1]].answers[number])
        for number, job in enumerate(JOBS)
        if given.answers[number] != made.truth[job[1]].answers[number]
        or given.prompts[number] != made.truth[job[1]].prompts[number]
    }
    assert not wrong, f"{len(wrong)} of {len(JOBS)} requests differ: {wrong}"
    assert memory["adapters_resident"] == 2


def test_adapters_matter(made: Made) -> None:
    for number in range(len(JOBS)):
        assert len({made.truth[target].prompts[number] for target in TARGETS}) == len(TARGETS)


@pytest.mark.skipif(not NEWEST_RELEASE, reason="the same code in both releases, and engines take time")
def test_expert_parallel_by_mc2_and_alltoall(made: Made) -> None:
    """Sums are cut and rounded otherwise then, so over all prompts an adapter's answers must be far nearer to its own
    merged checkpoint's than to any other's."""
    with weave_ascend_engine(made.base, generation="A3", **OURS, **EXPERT_PARALLEL) as llm:
        given = given_by(llm, requests_for(llm, made.adapters))
    for target in TARGETS:
        numbers = [number for number, job in enumerate(JOBS) if job[1] == target]
        distances = {
            each: distance(joined(given.prompts, numbers), joined(made.truth[each].prompts, numbers))
            for each in TARGETS
        }
        own = distances.pop(target)
        assert 5 * own < min(distances.values()), (target, own, distances)
