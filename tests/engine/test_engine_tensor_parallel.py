"""Tensor parallel 2 on a CPU: two spawned workers serve as plain vLLM does with two, and never disagree.

The ranks are processes of their own, with their own salt for the hash of a string: an order that comes out of a set
differs between them. A load that fails must fail on both, or on none, and must not be heard of again: vLLM's queues
hand the exception of one call to the next one as well.

Faults are injected by the tests into running workers, through vLLM's own `collective_rpc`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from fixtures.plain_vllm import GREEDY, PROMPTS, Answer, Answers, Batch, run_batch
from fixtures.tiny_models import EXPERTS, LAYERS, TinyFamily, expert_names
from fixtures.weave_engine import memory_of, weave_engine
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.engine
# the workers cannot import this module: what they are to run travels whole
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE, ADAPTERS, SLOTS = -1, 3, 2
# 1,024 tokens a step: no prompt is cut
SETTINGS: dict[str, Any] = {"tensor_parallel_size": 2, "max_num_batched_tokens": 1024}
# the two largest of the family's adapters take 9 rows of a layer; one that tunes all 16 experts never fits
# nothing is cached on the host, so that every load reads
WEAVE = {"adapter_rows": 12, "host_cache": 0}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Leave to send functions to workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        yield


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", 4)
    return made


@pytest.fixture(scope="module")
def truth(family: TinyFamily, plain: Any) -> dict[int, Answers]:
    """Plain vLLM's answers with two ranks, by adapter number (BASE for the base model)."""
    models = {BASE: family.base, **{number: family.merged[number] for number in range(ADAPTERS)}}
    answers: dict[int, Answers] = plain(models, {"once": Batch(PROMPTS), "thrice": Batch(PROMPTS * 3)}, **SETTINGS)
    return answers


@pytest.fixture(scope="module")
def running(family: TinyFamily) -> Iterator[Any]:
    with weave_engine(family.base, max_loras=SLOTS, max_cpu_loras=ADAPTERS, weave=WEAVE, **SETTINGS) as llm:
        yield llm


@pytest.fixture
def engine(running: Any) -> Iterator[Any]:
    """The engine without adapters; at the end its ranks must agree."""
    unload_all(running)
    assert len(memory_of(running)) == 2
    yield running
    assert_ranks_agree(running)


def unload_all(llm: Any) -> None:
    core = llm.llm_engine
    for public_id in list(core.list_loras()):
        assert core.remove_lora(public_id)


def lora(path: Path, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter{number}", number + 1, str(path))


def serve(llm: Any, family: TinyFamily, numbers: list[int]) -> list[tuple[int, int, list[Answer]]]:
    """Every prompt for each of `numbers`, as one batch; (prompt index, number, answers) of each request."""
    from vllm import SamplingParams

    jobs = [(index, number) for index in range(len(PROMPTS)) for number in numbers]
    requests = [None if number == BASE else lora(family.adapters[number], number) for _, number in jobs]
    answers = run_batch(llm, [PROMPTS[index] for index, _ in jobs], SamplingParams(**GREEDY), requests)
    return [(index, number, answer) for (index, number), answer in zip(jobs, answers, strict=True)]


def expected(truth: dict[int, Answers], numbers: list[int]) -> list[tuple[int, int, list[Answer]]]:
    return [(i, number, truth[number]["once"][i]) for i in range(len(PROMPTS)) for number in numbers]


def on_workers(llm: Any, call: Callable[..., Any], *args: Any) -> list[Any]:
    answers: list[Any] = llm.collective_rpc(call, args=args)
    return answers


def fingerprint(worker: Any) -> str:
    return str(worker.model_runner.lora_manager.store.fingerprint())


def assert_ranks_agree(llm: Any) -> None:
    first, second = on_workers(llm, fingerprint)
    assert first == second
    first, second = memory_of(llm)
    assert first == second


def load_fails(llm: Any, path: Path, code: str) -> None:
    """Loading `path` fails with `code`, and no rank is changed by it."""
    before = (on_workers(llm, fingerprint), memory_of(llm), llm.llm_engine.list_loras())
    with pytest.raises(Exception, match=rf"\[{code}\]"):
        llm.llm_engine.add_lora(lora(path, 7))
    assert (on_workers(llm, fingerprint), memory_of(llm), llm.llm_engine.list_loras()) == before


def load_works(llm: Any, family: TinyFamily, truth: dict[int, Answers], number: int) -> None:
    """The next load succeeds and serves the right weights beside the base model."""
    assert llm.llm_engine.add_lora(lora(family.adapters[number], number))
    assert serve(llm, family, [BASE, number]) == expected(truth, [BASE, number])


def test_truth_does_not_depend_on_the_batch_and_adapters_matter(truth: dict[int, Answers]) -> None:
    for answers in truth.values():
        assert answers["thrice"] == answers["once"] * 3
    for index in range(len(PROMPTS)):
        assert len({answers["once"][index][0].tokens for answers in truth.values()}) == len(truth)


def test_ranks_hash_names_differently(engine: Any) -> None:
    """What makes the order of a set differ between ranks; without it the tests here would show less."""
    first, second = on_workers(engine, lambda worker: [hash(f"adapter{number}") for number in range(ADAPTERS)])
    assert first != second


def test_mixed_batch_equals_plain_vllm_with_two_ranks(engine: Any, family: TinyFamily, truth: Any) -> None:
    assert serve(engine, family, [BASE, 0, 1]) == expected(truth, [BASE, 0, 1])
    assert [worker["adapters_resident"] for worker in memory_of(engine)] == [2, 2]


def test_more_adapters_than_slots(engine: Any, family: TinyFamily, truth: Any) -> None:
    for numbers in ([2, 0, BASE, 1], [1, BASE, 2, 0]):
        assert serve(engine, family, numbers) == expected(truth, numbers)
        assert_ranks_agree(engine)
    assert [(worker["adapters_resident"], worker["adapters_staged"]) for worker in memory_of(engine)] == [(2, 3)] * 2


def edited(source: Path, at: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of an adapter, its tensors changed by `edit`."""
    shutil.copytree(source, at)
    tensors = load_file(at / "model.safetensors")
    edit(tensors)
    save_file(tensors, at / "model.safetensors")
    return at


def without_one_tensor(source: Path, at: Path) -> Path:
    return edited(source, at, lambda tensors: tensors.pop(sorted(tensors)[0]))


def with_a_narrow_tensor(source: Path, at: Path) -> Path:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name][:, :-1].contiguous()

    return edited(source, at, narrow)


def of_every_expert(source: Path, at: Path) -> Path:
    """More experts than there are adapter rows: only the workers can tell."""
    state = load_file(source.parent / "base" / "model.safetensors")
    at.mkdir()
    names = [
        name
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for name in expert_names("qwen3_moe", layer, expert)
    ]
    save_file({name: state[name] for name in names}, at / "model.safetensors")
    experts = {str(layer): list(range(EXPERTS)) for layer in range(LAYERS)}
    config = {"experts": experts, "shared_experts": False, "non_expert_modules": False}
    (at / "expert_cfg.json").write_text(json.dumps(config))
    return at


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (without_one_tensor, "ADAPTER_TENSOR_MISSING"),
        (with_a_narrow_tensor, "ADAPTER_TENSOR_SHAPE"),
        (of_every_expert, "ROWS_EXHAUSTED"),
    ],
    ids=["missing tensor", "wrong shape", "capacity"],
)
def test_failed_load_then_good_load(
    make: Callable[..., Path], code: str, engine: Any, family: TinyFamily, truth: Any, tmp_path: Path
) -> None:
    bad = make(family.adapters[0], tmp_path / "bad")
    load_fails(engine, bad, code)
    load_fails(engine, bad, code)
    load_works(engine, family, truth, 0)
    load_fails(engine, bad, code)
    load_works(engine, family, truth, 1)


def fail_reading(error: Callable[[], Exception], ranks: tuple[int, ...]) -> Callable[[Any], None]:
    """A function for workers that makes reading any adapter fail on `ranks`, until `heal`."""

    def inject(worker: Any) -> None:
        def read(*args: Any) -> Any:
            raise error()

        if worker.rank in ranks:
            worker.model_runner.lora_manager.loader.reader.read = read

    return inject


def fail_verifying(ranks: tuple[int, ...]) -> Callable[[Any], None]:
    """A function for workers that spoils the last row written on `ranks`: found when all others are in place."""

    def inject(worker: Any) -> None:
        from npu_weave.experts.prepared import LeasedRow, RowCopy, row_content
        from npu_weave.memory.row_bytes import same_bits

        layers = worker.model_runner.lora_manager.store.bank.layers
        last = layers[max(layers)]
        lease = last.lease

        class Spoiler(RowCopy):
            def run(self, *, verify: bool) -> None:
                super().run(verify=False)
                self.row.view(-1)[-1].add_(1)
                if verify and not same_bits(self.row, self.source):
                    raise row_content(self.name)

        class SpoiledRow(LeasedRow):
            def copies(self) -> list[RowCopy]:
                *whole, piece = super().copies()
                return [*whole, Spoiler(piece.row, piece.source, piece.name)]

        def lease_with_a_spoiler(*args: Any) -> list[LeasedRow]:
            *rows, row = lease(*args)
            return [*rows, SpoiledRow(*row)]

        if worker.rank in ranks:
            last.lease = lease_with_a_spoiler

    return inject


def heal(worker: Any) -> None:
    manager = worker.model_runner.lora_manager
    manager.loader.reader.__dict__.pop("read", None)
    for layer in manager.store.bank.layers.values():
        layer.__dict__.pop("lease", None)


def unreadable() -> Exception:
    from npu_weave.errors import AdapterFileError

    return AdapterFileError("FILE_UNREADABLE", "a shard", got="an injected fault")


def io_error() -> Exception:
    return OSError(5, "an injected fault")


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=["rank 0", "rank 1", "both ranks"])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda ranks: fail_reading(unreadable, ranks), "FILE_UNREADABLE"),
        (lambda ranks: fail_reading(io_error, ranks), "WORKER_FAILED"),
        (fail_verifying, "ROW_CONTENT"),
    ],
    ids=["unreadable", "unexpected error", "spoiled copy"],
)
def test_failure_in_workers_leaves_no_rank_changed(
    fault: Callable[..., Any], code: str, ranks: tuple[int, ...], engine: Any, family: TinyFamily, truth: Any
) -> None:
    assert engine.llm_engine.add_lora(lora(family.adapters[1], 1))
    on_workers(engine, fault(ranks))
    try:
        load_fails(engine, family.adapters[0], code)
        assert serve(engine, family, [BASE, 1]) == expected(truth, [BASE, 1])
    finally:
        on_workers(engine, heal)
    load_works(engine, family, truth, 0)
    assert serve(engine, family, [1, BASE, 0]) == expected(truth, [1, BASE, 0])


def test_adapter_that_changes_between_check_and_load_is_refused(
    engine: Any, family: TinyFamily, truth: Any, tmp_path: Path
) -> None:
    """The engine core looks at the files, the workers read them: all must mean the same state of them.

    Rank 0 changes it before it reads; rank 1 may read either.
    """
    moving = tmp_path / "moving"
    shutil.copytree(family.adapters[0], moving)

    def swap(worker: Any, source: str, target: str) -> None:
        reader = worker.model_runner.lora_manager.loader.reader
        read = reader.read

        def swap_then_read(*args: Any) -> Any:
            os.replace(source, target)
            return read(*args)

        if worker.rank == 0:
            reader.read = swap_then_read

    changed = edited(family.adapters[0], tmp_path / "changed", lambda tensors: tensors[sorted(tensors)[0]].add_(1))
    on_workers(engine, swap, str(changed / "model.safetensors"), str(moving / "model.safetensors"))
    try:
        load_fails(engine, moving, "ADAPTER_CHANGED")
    finally:
        on_workers(engine, heal)
    load_works(engine, family, truth, 0)
