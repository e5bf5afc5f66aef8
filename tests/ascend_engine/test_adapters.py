"""Adapters through whole engines of vllm-ascend's real sources, on an emulated runtime, against merged checkpoints.

The truth is transformers on each merged checkpoint, in float32, greedy: the same tokens, and log-probabilities that
differ by rounding only. Every engine mixes base and three adapters in
one batch with two slots, cuts long prompts, loads and unloads while it runs, and survives loads that fail on all ranks.
Workers are spawned processes. Expert weights lie in memory of the ACL driver: a grouped matmul that read a row without
pages would end its process.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cloudpickle
import pytest
from fixtures.ascend_engine import Answer, answers, transformers_answers
from fixtures.tiny_models import TinyFamily
from fixtures.weave_ascend import NEWEST_RELEASE, weave_ascend_engine
from fixtures.weave_engine import memory_of

pytestmark = pytest.mark.ascend_engine
# the workers cannot import this module: what they are to run travels whole
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE, ADAPTERS, SLOTS, TOKENS = -1, 3, 2, 8
ROUNDING = 2e-4  # of log-probabilities, in float32; adapters move them by a hundred times as much
PROMPTS = ("hello world", "MoE", "the quick brown fox", "0123456789 longer than a step takes " * 3)
STEP_TOKENS = 48
TARGETS = (BASE, 0, 1, 2)
JOBS = [(prompt, target) for prompt in range(len(PROMPTS)) for target in TARGETS]


class Setup(NamedTuple):
    """An engine's model and settings, and the communication methods that its MoE layers must have used."""

    kind: str
    engine: dict[str, Any]
    methods: set[str]
    generation: str = "A2"
    additional: Mapping[str, Any] = MappingProxyType({})


SEQUENCE_PARALLEL = {"enable_flashcomm1": True}
EXPERT_PARALLEL = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
SETUPS = {
    "qwen3, one NPU": Setup("qwen3_moe", {}, {"AllGatherCommImpl"}),
    "deepseek v2, one NPU": Setup("deepseek_v2", {}, {"AllGatherCommImpl"}),
    # 910C: small steps go by MC2, larger ones by AlltoAll
    "qwen3, expert parallel by MC2 and AlltoAll": Setup(
        "qwen3_moe", EXPERT_PARALLEL, {"MC2CommImpl", "AlltoAllCommImpl"}, "A3"
    ),
}
if NEWEST_RELEASE:  # the same code in both, and engines take minutes
    SETUPS |= {
        "qwen3, tensor parallel": Setup("qwen3_moe", {"tensor_parallel_size": 2}, {"AllGatherCommImpl"}),
        "qwen3, expert parallel by AllGather": Setup("qwen3_moe", EXPERT_PARALLEL, {"AllGatherCommImpl"}),
        # shared experts beside dispatched ones
        "deepseek v2, expert parallel by MC2 and AlltoAll": Setup(
            "deepseek_v2", EXPERT_PARALLEL, {"MC2CommImpl", "AlltoAllCommImpl"}, "A3"
        ),
        "qwen3, sequence and expert parallel by AllGather": Setup(
            "qwen3_moe", EXPERT_PARALLEL, {"AllGatherCommImpl"}, additional=SEQUENCE_PARALLEL
        ),
        "qwen3, sequence and expert parallel by MC2 and AlltoAll": Setup(
            "qwen3_moe", EXPERT_PARALLEL, {"MC2CommImpl", "AlltoAllCommImpl"}, "A3", SEQUENCE_PARALLEL
        ),
    }


class Served(NamedTuple):
    family: TinyFamily
    setup: Setup
    truth: dict[int, list[Answer]]
    llm: Any


@pytest.fixture(scope="module")
def truth_of(families: Callable[..., TinyFamily]) -> Callable[[str], dict[int, list[Answer]]]:
    """What transformers answers with every checkpoint of a family, by target."""
    truths: dict[str, dict[int, list[Answer]]] = {}

    def find(kind: str) -> dict[int, list[Answer]]:
        made = families(kind, ADAPTERS)
        if kind not in truths:
            checkpoints = {BASE: made.base, **dict(enumerate(made.merged))}
            truths[kind] = {target: transformers_answers(path, PROMPTS, TOKENS) for target, path in checkpoints.items()}
        return truths[kind]

    return find


@pytest.fixture(scope="module", params=SETUPS)
def served(request: pytest.FixtureRequest, families: Callable[..., TinyFamily], truth_of: Any) -> Iterator[Served]:
    setup = SETUPS[request.param]
    family, truth = families(setup.kind, ADAPTERS), truth_of(setup.kind)
    settings = {
        "max_loras": SLOTS,
        "max_cpu_loras": ADAPTERS,
        "max_num_batched_tokens": STEP_TOKENS,
        "additional_config": {"npu_weave": {"adapter_rows": 12, "host_cache": 0}, **setup.additional},
        **setup.engine,
    }
    with weave_ascend_engine(family.base, generation=setup.generation, **settings) as llm:
        llm.collective_rpc(count_methods)
        yield Served(family, setup, truth, llm)


@pytest.fixture(autouse=True)
def nothing_left_behind(served: Served) -> Iterator[None]:
    """Every test begins without adapters; at its end the ranks have the same and their invariants hold."""
    core = served.llm.llm_engine
    for public_id in list(core.list_loras()):
        assert core.remove_lora(public_id)
    yield
    reports = memory_of(served.llm)
    assert len(reports) == served.setup.engine.get("tensor_parallel_size", 1)
    assert len({(report["adapters_staged"], report["adapters_resident"]) for report in reports}) == 1


def lora(path: Path, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter{number}", number + 1, str(path))


def serve(served: Served, jobs: list[tuple[int, int]]) -> list[Answer]:
    requests = [None if target == BASE else lora(served.family.adapters[target], target) for _, target in jobs]
    return answers(served.llm, [PROMPTS[prompt] for prompt, _ in jobs], TOKENS, requests)


def assert_exact(served: Served, jobs: list[tuple[int, int]]) -> None:
    """One batch of `jobs` (prompt, target) is answered as the merged checkpoints answer."""
    wrong = {}
    for (prompt, target), answer in zip(jobs, serve(served, jobs), strict=True):
        true = served.truth[target][prompt]
        if answer[:2] != true[:2] or distance(answer, true) > ROUNDING:
            wrong[prompt, target] = (answer, true)
    assert not wrong, f"{len(wrong)} of {len(jobs)} requests differ: {wrong}"


def distance(one: Answer, other: Answer) -> float:
    """The largest difference of two answers' log-probabilities."""
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def count_methods(worker: Any) -> None:
    """Has the worker note which communication methods its MoE layers use."""
    from vllm_ascend.ops.fused_moe.moe_comm_method import MoECommMethod

    inner, worker.methods_seen = MoECommMethod.fused_experts, set()

    def noted(self: Any, fused_experts_input: Any) -> Any:
        worker.methods_seen.add(type(self).__name__)
        return inner(self, fused_experts_input)

    MoECommMethod.fused_experts = noted


def test_adapters_matter(served: Served) -> None:
    for prompt in range(len(PROMPTS)):
        for one, other in combinations([served.truth[target][prompt] for target in TARGETS], 2):
            assert one.tokens != other.tokens or distance(one, other) > 100 * ROUNDING


def test_mixed_batches_with_more_adapters_than_slots(served: Served) -> None:
    """Twice, the second time with other adapters in the slots to begin with."""
    for jobs in (JOBS, JOBS[::-1]):
        assert_exact(served, jobs)
    seen = served.llm.collective_rpc(lambda worker: worker.methods_seen)
    assert all(methods == served.setup.methods for methods in seen), seen
    assert {report["adapters_resident"] for report in memory_of(served.llm)} == {SLOTS}


def test_loading_and_unloading_while_it_runs(served: Served) -> None:
    core = served.llm.llm_engine
    empty = [report["mapped_bytes"] for report in memory_of(served.llm)]
    for number in (0, 1):
        assert core.add_lora(lora(served.family.adapters[number], number))
    assert core.list_loras() == {1, 2}
    assert all(now["mapped_bytes"] >= before for now, before in zip(memory_of(served.llm), empty, strict=True))
    assert_exact(served, [(0, 0), (0, BASE), (1, 1)])
    assert core.remove_lora(1) and core.list_loras() == {2}
    assert_exact(served, [(2, 1), (2, BASE)])
    assert core.remove_lora(2) and not core.list_loras()
    assert [report["mapped_bytes"] for report in memory_of(served.llm)] == empty


def test_a_load_that_fails_on_every_rank(served: Served, tmp_path: Path) -> None:
    """And the next one, which vLLM's queues would hand the old error."""
    core = served.llm.llm_engine
    assert core.add_lora(lora(served.family.adapters[1], 1))
    bad = tmp_path / "bad"
    shutil.copytree(served.family.adapters[0], bad)
    shard = bad / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    before = memory_of(served.llm), core.list_loras()
    for _ in range(2):
        with pytest.raises(Exception, match=r"\[FILE_"):
            core.add_lora(lora(bad, 7))
        assert (memory_of(served.llm), core.list_loras()) == before
    assert core.add_lora(lora(served.family.adapters[0], 0))
    assert_exact(served, [(0, 0), (1, 1), (2, BASE), (1, 0)])


def fuse_gating(worker: Any) -> None:
    """Has the layers choose rows by the fused operator, which answers as the emulated one but for rounding."""
    from torch_npu import strict

    from npu_weave.engine.ascend import fused_gating

    worker.same_answers, fused_gating.same_answers = fused_gating.same_answers, lambda *_: True
    for port in worker.model_runner.lora_manager._ports:
        port._routed._gate._decided = False
    strict.CALLS.clear()


def separate_gating(worker: Any) -> dict[str, int]:
    """Undoes `fuse_gating`. Returns the calls of operators since."""
    from torch_npu import strict

    from npu_weave.engine.ascend import fused_gating

    calls = dict(strict.CALLS)
    fused_gating.same_answers = worker.same_answers
    for port in worker.model_runner.lora_manager._ports:
        port._routed._gate._decided = False
    return calls


def test_gating_and_rerouting_in_one_operator(served: Served) -> None:
    served.llm.collective_rpc(fuse_gating)
    try:
        assert_exact(served, JOBS)
    finally:
        counted = served.llm.collective_rpc(separate_gating)
    assert all("moe_gating_top_k" not in calls and calls["npu_grouped_matmul"] > 0 for calls in counted), counted
    assert_exact(served, JOBS)


def poison(worker: Any, revision_of: str) -> int:
    """Fills the rows of an adapter with NaN, and has grouped matmuls note when they read such a row.

    Returns:
        How many rows were poisoned.
    """
    import torch
    import torch_npu

    manager = worker.model_runner.lora_manager
    revision = next(number for number, staged in manager.store.staged.items() if staged.name == revision_of)
    slot = manager.store.slot_of(revision)
    worker.poisoned_reads, worker.matmuls, count = 0, 0, 0
    for layer in manager.store.bank.layers.values():
        rows = [row for row in layer.local(layer.owned.get(slot, [])) if row is not None]
        for tensor in layer.tensors.values():
            for row in rows:
                tensor.row_view(row).fill_(torch.nan)
        count += len(rows)
    inner = torch_npu.npu_grouped_matmul

    def noted(x: Any, weight: Any, *args: Any, group_list: Any, group_list_type: int, **kwargs: Any) -> Any:
        counts = group_list if group_list_type else group_list.diff(prepend=group_list.new_zeros(1))
        worker.matmuls += 1
        worker.poisoned_reads += sum(bool(weight[0][row].isnan().any()) for row in counts.nonzero().flatten().tolist())
        return inner(x, weight, *args, group_list=group_list, group_list_type=group_list_type, **kwargs)

    torch_npu.npu_grouped_matmul, worker.unpoisoned_matmul = noted, inner
    return count


def heal(worker: Any) -> tuple[int, int]:
    """Returns grouped matmuls since `poison`, and how many poisoned rows they read."""
    import torch_npu

    torch_npu.npu_grouped_matmul = worker.unpoisoned_matmul
    return worker.matmuls, worker.poisoned_reads


def test_nobody_elses_token_and_no_padding_reads_an_adapters_row(served: Served) -> None:
    core = served.llm.llm_engine
    for number in (0, 1):
        assert core.add_lora(lora(served.family.adapters[number], number))
    assert sum(served.llm.collective_rpc(poison, args=("adapter0",))) > 0
    try:
        assert_exact(served, [(0, BASE), (1, 1), (2, BASE), (3, 1), (1, BASE)])
    finally:
        counted = served.llm.collective_rpc(heal)
    assert all(matmuls > 0 and poisoned == 0 for matmuls, poisoned in counted), counted


def test_the_poison_is_seen_where_it_is_read(served: Served) -> None:
    """What the test above relies on."""
    assert served.llm.llm_engine.add_lora(lora(served.family.adapters[0], 0))
    assert sum(served.llm.collective_rpc(poison, args=("adapter0",))) > 0
    try:
        serve(served, [(0, 0)])
    finally:
        counted = served.llm.collective_rpc(heal)
    assert sum(poisoned for _, poisoned in counted) > 0
