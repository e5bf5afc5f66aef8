"""Adapters through two data parallel ranks of vllm-ascend's real sources, on an emulated runtime.

The truth is transformers on each merged checkpoint, in float32, greedy. Each rank is an engine core of its own, whose
MoE layers compute the other's tokens too: all of them by AllGather, those of its experts by MC2 and AlltoAll. With
AllGather a rank must therefore know the slots of tokens that it never scheduled. Expert weights lie in memory of the
ACL driver: a grouped matmul that read a row without pages would end its process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import pytest
from fixtures.ascend_data_parallel import RANKS, DataParallelEngine, Job, data_parallel_engine
from fixtures.ascend_engine import Answer, transformers_answers
from fixtures.server import BASE as SERVED_BASE
from fixtures.server import Server, completion, running_server
from fixtures.tiny_models import TinyFamily
from fixtures.weave_ascend import NEWEST_RELEASE

pytestmark = pytest.mark.ascend_engine
# the workers cannot import this module: what they are to run travels whole
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE, ADAPTERS, SLOTS, TOKENS = -1, 4, 3, 8
ROUNDING = 2e-4  # of log-probabilities, in float32; adapters move them by a hundred times as much
PROMPTS = ("hello world", "MoE", "the quick brown fox", "0123456789 longer than a step takes " * 3)
STEP_TOKENS = 48
TARGETS = (BASE, 0, 1, 2)

Requests = Sequence[tuple[int, int, int]]
"""Rank, prompt and target of each."""


class Setup(NamedTuple):
    """A generation of NPUs, and the communication methods that its MoE layers must have used."""

    generation: str
    methods: set[str]


# both with expert parallelism; without it, see the server below
SETUPS = {
    "AllGather": Setup("A2", {"AllGatherCommImpl"}),
    "MC2 and AlltoAll": Setup("A3", {"MC2CommImpl", "AlltoAllCommImpl"}),
}
newest_release_only = pytest.mark.skipif(not NEWEST_RELEASE, reason="the same code in both, and engines take minutes")


class Served(NamedTuple):
    """A running engine, and the errors of what was asked of it before its first request."""

    family: TinyFamily
    setup: Setup
    truth: dict[int, list[Answer]]
    engine: DataParallelEngine
    refused: dict[str, str]


@pytest.fixture(scope="module")
def family(families: Callable[..., TinyFamily]) -> TinyFamily:
    return families("qwen3_moe", ADAPTERS)


@pytest.fixture(scope="module")
def truth(family: TinyFamily) -> dict[int, list[Answer]]:
    """What transformers answers to PROMPTS, by target."""
    checkpoints = {BASE: family.base, **dict(enumerate(family.merged[:SLOTS]))}
    return {target: transformers_answers(path, PROMPTS, TOKENS) for target, path in checkpoints.items()}


@pytest.fixture(scope="module", params=SETUPS)
def served(request: pytest.FixtureRequest, family: TinyFamily, truth: dict[int, list[Answer]]) -> Iterator[Served]:
    setup = SETUPS[request.param]
    settings = {
        "max_loras": SLOTS,
        "max_num_batched_tokens": STEP_TOKENS,
        "enable_expert_parallel": True,
        "additional_config": {"npu_weave": {"adapter_rows": 24}},
    }
    with data_parallel_engine(family.base, generation=setup.generation, **settings) as engine:
        refused = {"no adapter": error_of(lambda: engine.load(lora(family, ADAPTERS, family.base)))}
        for number in range(SLOTS):
            assert engine.load(lora(family, number))
        refused |= {
            "other content": error_of(lambda: engine.load(lora(family, 0, family.adapters[1]))),
            "again": error_of(lambda: engine.load(lora(family, 0, load_inplace=True))),
            "no slot": error_of(lambda: engine.load(lora(family, SLOTS))),
        }
        assert engine.load(lora(family, 0)), "there already"
        engine.on_ranks(take_notes)
        yield Served(family, setup, truth, engine, refused)


def lora(family: TinyFamily, number: int, path: Path | None = None, **fields: Any) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter{number}", number + 1, str(path or family.adapters[number]), **fields)


def error_of(call: Callable[[], Any]) -> str:
    """What `call` is refused with; it must be."""
    with pytest.raises(Exception) as refused:
        call()
    return str(refused.value)


def assert_exact(served: Served, requests: Requests) -> None:
    """Requests that are under way together are answered as the merged checkpoints answer."""
    adapters = {target: None if target == BASE else lora(served.family, target) for target in TARGETS}
    jobs = [Job(rank, PROMPTS[prompt], adapters[target]) for rank, prompt, target in requests]
    found = served.engine.answers(jobs, TOKENS)
    wrong = {}
    for asked, answer in zip(requests, found, strict=True):
        true = served.truth[asked[2]][asked[1]]
        if answer[:2] != true[:2] or distance(answer, true) > ROUNDING:
            wrong[asked] = (answer, true)
    assert not wrong, f"{len(wrong)} of {len(requests)} requests differ: {wrong}"


def distance(one: Answer, other: Answer) -> float:
    """The largest difference of two answers' log-probabilities."""
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def adapter_tokens(served: Served, requests: Requests) -> list[int]:
    """How many tokens of adapters each rank computes for `requests`: all but the last of each."""
    counts = [0] * RANKS
    for rank, prompt, target in requests:
        counts[rank] += 0 if target == BASE else len(served.truth[target][prompt].prompt) + TOKENS - 1
    return counts


def take_notes(worker: Any) -> None:
    """Has the worker note what `notes` returns."""
    import torch
    from vllm_ascend.ops.fused_moe.moe_comm_method import MoECommMethod

    from npu_weave.experts.routing import LayerRouting

    worker.noted = {"methods": set(), "steps": 0, "adapter tokens": 0, "gathers": 0}
    own = worker.model_runner.lora_manager.token_slots.buffer.data_ptr()
    fused_experts, gather = MoECommMethod.fused_experts, torch.distributed.all_gather_into_tensor
    reroute, gate = LayerRouting.reroute, LayerRouting.gate

    def note(routing: Any, tokens: int, slots: torch.Tensor) -> None:
        if routing._layer.index == 0:
            worker.noted["steps"] += 1
            worker.noted["adapter tokens"] += int((slots[:tokens] != 0).sum())

    def noting_reroute(self: Any, ids: torch.Tensor, slots: torch.Tensor) -> Any:
        note(self, ids.shape[0], slots)
        return reroute(self, ids, slots)

    def noting_gate(self: Any, logits: torch.Tensor, gating: Any, slots: torch.Tensor) -> Any:
        note(self, logits.shape[0], slots)
        return gate(self, logits, gating, slots)

    def noting_experts(self: Any, fused_experts_input: Any) -> Any:
        worker.noted["methods"].add(type(self).__name__)
        return fused_experts(self, fused_experts_input)

    def noting_gather(output: torch.Tensor, given: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        worker.noted["gathers"] += given.data_ptr() == own
        return gather(output, given, *args, **kwargs)

    MoECommMethod.fused_experts = noting_experts
    LayerRouting.reroute, LayerRouting.gate = noting_reroute, noting_gate
    torch.distributed.all_gather_into_tensor = noting_gather


def notes(worker: Any) -> dict[str, Any]:
    """What a rank did since it was asked last.

    Communication methods of its MoE layers; steps of its first MoE layer; tokens with an adapter's slot that were
    dispatched there in all steps; gathers of slots.
    """
    noted, worker.noted = worker.noted, {"methods": set(), "steps": 0, "adapter tokens": 0, "gathers": 0}
    return {**noted, "methods": sorted(noted["methods"])}


@newest_release_only
def test_adapters_matter(truth: dict[int, list[Answer]]) -> None:
    for prompt in range(len(PROMPTS)):
        for one, other in combinations([truth[target][prompt] for target in TARGETS], 2):
            assert one.tokens != other.tokens or distance(one, other) > 100 * ROUNDING


@newest_release_only
def test_one_rank_has_requests_and_the_other_none(served: Served) -> None:
    """The first step in service is one of these: a rank without requests takes part in it."""
    for rank in range(RANKS):
        assert_exact(served, [(rank, 3, 1), (rank, 0, BASE), (rank, 1, 2)])
        assert_exact(served, [(rank, 2, 0)])


@newest_release_only
def test_ranks_with_different_adapters(served: Served) -> None:
    served.engine.on_ranks(notes)
    seen: set[str] = set()
    everything = [(prompt, target) for prompt in range(len(PROMPTS)) for target in TARGETS]
    for rank_of in (lambda prompt, target: (prompt + target) % RANKS, lambda prompt, target: int(target > 0)):
        requests = [(rank_of(*each), *each) for each in everything]
        assert_exact(served, requests)
        expected = adapter_tokens(served, requests)
        for rank, noted in enumerate(served.engine.on_ranks(notes)):
            seen.update(noted["methods"])
            gathered = served.setup.methods == {"AllGatherCommImpl"}
            # a token more, and padding or a step without requests would use an adapter's rows
            assert noted["adapter tokens"] == (sum(expected) if gathered else expected[rank])
            assert noted["steps"] > TOKENS and noted["gathers"] == (noted["steps"] if gathered else 0)
    assert seen == served.setup.methods


@newest_release_only
def test_what_would_make_ranks_differ_is_refused_and_they_go_on(served: Served) -> None:
    assert_exact(served, [(0, 0, 0)])
    unknown, engine = lora(served.family, SLOTS), served.engine
    late = {
        "load": error_of(lambda: engine.load(unknown)),
        "load again": error_of(lambda: engine.load(lora(served.family, 0, load_inplace=True))),
        "removal": error_of(lambda: engine.run(engine.llm.remove_lora(1))),
    }
    assert all("[DATA_PARALLEL_STATIC]" in text for text in late.values()), late
    early = {what: text.partition("[")[2].partition("]")[0] for what, text in served.refused.items()}
    static = "DATA_PARALLEL_STATIC"
    missing = "EXPERT_CONFIG_MISSING"
    assert early == {"no adapter": missing, "other content": static, "again": static, "no slot": "SLOTS_EXHAUSTED"}
    with pytest.raises(RuntimeError, match="'error'"):  # its message stays in the engine core's log
        engine.answers([Job(1, PROMPTS[0], unknown)], TOKENS)
    assert engine.run(engine.llm.list_loras()) == {1, 2, 3}
    assert_exact(served, [(0, 0, 0), (1, 1, 2), (1, 2, BASE)])


def pretend_to_differ(worker: Any, notes: str) -> None:
    """Has the rank compare again before its next step, and one of them report another layout than its own.

    What the comparison raises is written below the directory `notes`, by rank.
    """
    from vllm.distributed import get_dp_group

    from npu_weave.engine.ascend.data_parallel import check_same_adapters

    manager, rank = worker.model_runner.lora_manager, get_dp_group().rank_in_group

    def compare(layout: str) -> None:
        try:
            check_same_adapters(layout)
        except Exception as error:
            Path(notes, str(rank)).write_text(str(error))
            raise

    manager._compare = compare
    if rank == 1:
        manager.store.layout = lambda: "another"


@newest_release_only
def test_ranks_with_other_adapters_do_not_serve(served: Served, tmp_path: Path) -> None:
    """The last of its engine, which ends."""
    from vllm.v1.engine.exceptions import EngineDeadError

    served.engine.on_ranks(partial(pretend_to_differ, notes=str(tmp_path)))
    with pytest.raises(EngineDeadError):
        served.engine.answers([Job(rank, PROMPTS[0]) for rank in range(RANKS)], TOKENS)
    for rank in range(RANKS):
        assert (tmp_path / str(rank)).read_text().startswith("[RANKS_DISAGREE] adapters of the data parallel ranks")


def test_a_server_without_expert_parallelism(
    family: TinyFamily, truth: dict[int, list[Answer]], tmp_path: Path
) -> None:
    """Adapters are named at its start; each rank computes a slice of every expert for the tokens of both."""
    options = (
        "--data-parallel-size", str(RANKS), "--max-loras", str(SLOTS), "--max-num-batched-tokens", str(STEP_TOKENS),
        "--dtype", "float32", "--max-model-len", "256", "--block-size", "128", "--num-gpu-blocks-override", "32",
        "--distributed-executor-backend", "uni", "--api-server-count", "1",
    )  # fmt: skip
    names = {SERVED_BASE: BASE, **{f"adapter{number}": number for number in range(SLOTS)}}
    adapters = {name: family.adapters[number] for name, number in names.items() if number != BASE}
    with running_server(family.base, tmp_path / "server.txt", adapters, options=options) as server:

        def check(asked: tuple[int, int, str]) -> None:
            rank, prompt, name = asked
            assert_answered(server, rank, name, truth[names[name]][prompt], PROMPTS[prompt])

        check((1, 3, "adapter1"))
        requests = [(rank, prompt, name) for prompt in range(4) for rank in range(RANKS) for name in names]
        with ThreadPoolExecutor(len(requests)) as clients:
            list(clients.map(check, requests))
        assert server.load("more", family.adapters[SLOTS]).status_code == 404, "no such route"
        check((0, 0, "adapter0"))


def assert_answered(server: Server, rank: int, name: str, true: Answer, prompt: str) -> None:
    response = server.client.post(
        "/v1/completions",
        json=completion(name, prompt, max_tokens=TOKENS),
        headers={"X-data-parallel-rank": str(rank)},
    )
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert tuple(choice["token_ids"]) == true.tokens
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(true.logprobs, abs=ROUNDING)
