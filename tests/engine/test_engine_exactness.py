"""One real engine serves a base model and four adapters; plain vLLM on the merged checkpoints is the truth.

The model is a Qwen3-MoE, whose answers in plain vLLM do not depend on what else is in the batch (tested here as
well) while a step has at least five tokens, so short prompts are compared request by request. Prompts that are
prefilled in chunks do depend on it, as the other requests decide where the chunks end: those are compared with a batch
of the same requests in the same order, each request's cache entries kept apart by a salt as adapters keep them apart
here. So is the batch of samples, which does not fit into one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.plain_vllm import GREEDY, PROMPTS, Answer, Answers, Batch, answers_of, run_batch
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import memory_of, weave_engine

pytestmark = pytest.mark.engine

LONG = ["a shared prefix of some length, " * 9 + tail for tail in ("one", "two", "three")]
# plain vLLM has no per-request seed on a CPU; of one candidate every sample is the same, which is what matters here
SAMPLED = {"temperature": 1.0, "top_k": 1, "n": 3, "max_tokens": 16, "ignore_eos": True, "logprobs": 0}
ADAPTERS = 4
# 1,024 tokens a step: all short prompts fit into one, LONG_JOBS (12 of 290 bytes) are cut into chunks
SETTINGS: dict[str, Any] = {"max_num_batched_tokens": 1024, "max_num_seqs": 32}
BASE = -1
LONG_JOBS = [(prompt, number) for prompt in LONG for number in (BASE, 0, 1, 2)]
SAMPLED_JOBS = [(prompt, number) for prompt in PROMPTS for number in (BASE, 0, 1)]


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", ADAPTERS)
    return made


@pytest.fixture(scope="module")
def truth(family: TinyFamily, plain: Any) -> dict[int, Answers]:
    """Plain vLLM's answers by adapter number (BASE for the base model)."""
    batches = {
        "long, alone": Batch(LONG),
        "long, cold": Batch([{"prompt": prompt, "cache_salt": str(number)} for prompt, number in LONG_JOBS]),
        "long, warm": Batch([{"prompt": prompt, "cache_salt": str(number)} for prompt, number in LONG_JOBS]),
        "short": Batch(PROMPTS),
        "doubled": Batch(PROMPTS * 2),
        "sampled": Batch([prompt for prompt, _ in SAMPLED_JOBS], SAMPLED),
    }
    answers: dict[int, Answers] = plain({BASE: family.base, **dict(enumerate(family.merged))}, batches, **SETTINGS)
    return answers


@pytest.fixture(scope="module")
def engine(family: TinyFamily) -> Iterator[Any]:
    with weave_engine(family.base, max_loras=3, max_cpu_loras=ADAPTERS, **SETTINGS) as llm:
        yield llm


def lora(family: TinyFamily, number: int, public_id: int | None = None, **fields: Any) -> Any:
    """The LoRARequest of an adapter, None for the base model."""
    from vllm.lora.request import LoRARequest

    if number == BASE:
        return None
    public_id = public_id or number + 1
    path = str(family.adapters[number])
    return LoRARequest(lora_name=f"adapter{public_id}", lora_int_id=public_id, lora_path=path, **fields)


def params(settings: Any = GREEDY) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**settings)


def serve(llm: Any, family: TinyFamily, jobs: list[tuple[str, int]], settings: Any = GREEDY) -> list[list[Answer]]:
    """Serve (prompt, adapter number) jobs as one batch."""
    return run_batch(llm, [job[0] for job in jobs], params(settings), [lora(family, job[1]) for job in jobs])


def test_truth_does_not_depend_on_the_batch_and_adapters_matter(truth: Any) -> None:
    for answers in truth.values():
        assert answers["doubled"] == answers["short"] * 2
    for index in range(len(PROMPTS)):
        assert len({truth[number]["short"][index][0].tokens for number in truth}) == ADAPTERS + 1


def test_base_is_bit_identical_before_and_after_adapters_are_loaded(
    engine: Any, family: TinyFamily, truth: Any
) -> None:
    jobs = [(prompt, BASE) for prompt in PROMPTS]
    before = serve(engine, family, jobs)
    for number in range(ADAPTERS):
        engine.llm_engine.add_lora(lora(family, number))
    assert before == serve(engine, family, jobs) == truth[BASE]["short"]


def test_mixed_batch_of_base_and_three_adapters(engine: Any, family: TinyFamily, truth: Any) -> None:
    jobs = [(index, number) for index in range(len(PROMPTS)) for number in (BASE, 0, 1, 2)]
    answers = serve(engine, family, [(PROMPTS[index], number) for index, number in jobs])
    assert len(jobs) == 24
    assert answers == [truth[number]["short"][index] for index, number in jobs]


def test_more_adapters_than_slots(engine: Any, family: TinyFamily, truth: Any) -> None:
    jobs = [(index, number) for index in range(len(PROMPTS)) for number in (3, 0, BASE, 1, 2)]
    answers = serve(engine, family, [(PROMPTS[index], number) for index, number in jobs])
    assert answers == [truth[number]["short"][index] for index, number in jobs]
    assert [worker["adapters_resident"] for worker in memory_of(engine)] == [3]


def test_chunked_prefill_and_prefix_cache_of_long_shared_prompts(engine: Any, family: TinyFamily, truth: Any) -> None:
    for state in ("long, cold", "long, warm"):
        answers = serve(engine, family, LONG_JOBS)
        assert answers == [truth[number][state][index] for index, (_, number) in enumerate(LONG_JOBS)]


def test_several_samples_a_request(engine: Any, family: TinyFamily, truth: Any) -> None:
    answers = serve(engine, family, SAMPLED_JOBS, SAMPLED)
    assert answers == [truth[number]["sampled"][index] for index, (_, number) in enumerate(SAMPLED_JOBS)]
    assert all(len(samples) == 3 for samples in answers)


def test_aborts_leave_the_others_alone_and_free_the_adapter(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    for number in (BASE, 0, 1):
        submit(core, str(number), lora(family, number))
    core.abort_request([f"0/{index}" for index in range(len(PROMPTS))] + ["1/0"])
    kept = [(BASE, index) for index in range(len(PROMPTS))] + [(1, index) for index in range(1, len(PROMPTS))]
    finished = finish(core)
    assert finished == {f"{number}/{index}": truth[number]["short"][index] for number, index in kept}


def test_unload_waits_for_requests_in_flight_and_then_frees_memory(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    for public_id in list(core.list_loras()):
        core.remove_lora(public_id)
    empty = memory_of(engine)[0]
    assert empty["adapters_staged"] == 0
    core.add_lora(lora(family, 0))
    loaded = memory_of(engine)[0]
    assert loaded["exact_bytes"] > empty["exact_bytes"]
    submit(core, "x", lora(family, 0))
    core.step()
    assert core.remove_lora(1)
    assert set(core.list_loras()) == set()
    assert memory_of(engine)[0]["adapters_staged"] == 1, "requests in flight keep their weights"
    assert finish(core) == {f"x/{index}": truth[0]["short"][index] for index in range(len(PROMPTS))}
    assert memory_of(engine)[0] == empty


def test_load_and_unload_while_others_generate(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    core.add_lora(lora(family, 0))
    for number in (BASE, 0):
        submit(core, str(number), lora(family, number))
    finished: dict[str, list[Answer]] = {}
    for number in (1, 2, 3):
        finished |= step(core)
        core.add_lora(lora(family, number))
        finished |= step(core)
        assert core.remove_lora(number + 1)
    finished |= finish(core)
    expected = {f"{n}/{index}": truth[n]["short"][index] for n in (BASE, 0) for index in range(len(PROMPTS))}
    assert finished == expected


@pytest.mark.parametrize("inplace", [True, False])
def test_re_pointed_name_serves_new_weights_and_no_stale_cache(
    engine: Any, family: TinyFamily, truth: Any, inplace: bool
) -> None:
    """Long prompts cached for the old weights never serve the new ones."""
    core, public_id = engine.llm_engine, 10 + inplace
    for number in (1, 2):
        core.add_lora(lora(family, number, public_id, load_inplace=inplace))
        served = run_batch(engine, LONG, params(), [lora(family, number, public_id)] * len(LONG))
        assert served == truth[number]["long, alone"]
    assert core.remove_lora(public_id)


def test_cache_entries_belong_to_one_name_one_content_and_one_salt(engine: Any, family: TinyFamily) -> None:
    """Counted by vLLM: how many tokens of a prompt it found in the prefix cache."""
    core, prompt = engine.llm_engine, "nobody else asks with this prefix, " * 9

    def found(number: int, public_id: int, **salt: str) -> int:
        request = lora(family, number, public_id)
        (output,) = engine.generate([{"prompt": prompt, **salt}], params(), lora_request=request, use_tqdm=False)
        cached: int = output.num_cached_tokens
        return cached

    for public_id in (60, 61):
        core.add_lora(lora(family, 1, public_id))
    assert found(BASE, 0) == 0 < found(BASE, 0)
    assert found(1, 60) == 0 < found(1, 60)
    assert found(1, 61) == 0, "another name, though its content is the same"
    assert found(1, 60, cache_salt="a") == 0 < found(1, 60, cache_salt="a")
    assert found(1, 60, cache_salt="b") == 0
    core.add_lora(lora(family, 2, 60))
    assert found(2, 60) == 0, "the name stands for other content"
    core.add_lora(lora(family, 1, 60))
    assert found(1, 60) > 0, "and again for what it stood for"
    for public_id in (60, 61):
        assert core.remove_lora(public_id)


def test_same_path_with_changed_content_serves_the_new_content(
    engine: Any, family: TinyFamily, truth: Any, tmp_path: Path
) -> None:
    from vllm.lora.request import LoRARequest

    moving = tmp_path / "moving"
    core = engine.llm_engine
    for number in (0, 3):
        moving.unlink(missing_ok=True)
        moving.symlink_to(family.adapters[number])
        core.add_lora(LoRARequest("moving", 21, str(moving), load_inplace=True))
        request = LoRARequest("moving", 21, str(moving))
        assert run_batch(engine, LONG, params(), [request] * len(LONG)) == truth[number]["long, alone"]
    assert core.remove_lora(21)


@pytest.mark.parametrize("inplace", [True, False])
def test_requests_in_flight_finish_on_the_old_weights(
    engine: Any, family: TinyFamily, truth: Any, inplace: bool
) -> None:
    core, public_id = engine.llm_engine, 30 + inplace
    core.add_lora(lora(family, 1, public_id))
    submit(core, "old", lora(family, 1, public_id))
    core.step()
    core.add_lora(lora(family, 2, public_id, load_inplace=inplace))
    submit(core, "new", lora(family, 2, public_id))
    # a request that was made for the old path and arrives late gets what the name stands for now
    submit(core, "late", lora(family, 1, public_id))
    finished = finish(core)
    for label, number in (("old", 1), ("new", 2), ("late", 2)):
        assert [finished[f"{label}/{index}"] for index in range(len(PROMPTS))] == truth[number]["short"]
    assert core.remove_lora(public_id)


def test_adapter_never_loaded_before_its_first_request(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    for public_id in list(core.list_loras()):
        core.remove_lora(public_id)
    assert serve(engine, family, [(prompt, 3) for prompt in PROMPTS]) == truth[3]["short"]
    assert set(core.list_loras()) == {4}


def test_pinned_adapter_stays_while_others_come_and_go(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    for number in range(ADAPTERS):
        core.add_lora(lora(family, number))
    assert core.pin_lora(1)
    for number in (1, 2, 3):
        serve(engine, family, [(PROMPTS[0], number)])
    assert serve(engine, family, [(prompt, 0) for prompt in PROMPTS]) == truth[0]["short"]
    assert core.remove_lora(1)


def submit(core: Any, label: str, lora_request: Any) -> None:
    """Queue all PROMPTS as requests "label/index", to start in one step.

    Steps of up to four tokens round differently in plain vLLM, so no request may run ahead of the others.
    """
    core.engine_core.call_utility("pause_scheduler", "keep", False)
    for index, prompt in enumerate(PROMPTS):
        core.add_request(f"{label}/{index}", prompt, params(), lora_request=lora_request)
    core.engine_core.call_utility("resume_scheduler")


def step(core: Any) -> dict[str, list[Answer]]:
    """One step; the requests it finished."""
    return {output.request_id: answers_of(output) for output in core.step() if output.finished}


def finish(core: Any) -> dict[str, list[Answer]]:
    """Step until nothing is left; the finished requests."""
    finished: dict[str, list[Answer]] = {}
    while core.has_unfinished_requests():
        finished |= step(core)
    return finished
