"""A server whose adapter memory holds one adapter and not two: refusals change nothing, unloading makes room again.

The model's rows are large enough that adapters need pages of their own: 512 and 256 KiB, pages are 2 MiB. With 12
adapter rows a layer the first adapter needs at most 16 pages, the second 19, both together 20.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.adapters import expert_key, write_expert_config, write_tensors
from fixtures.plain_vllm import PROMPTS
from fixtures.server import BASE, ENDLESS, Server, Truth, eventually, running_server, truth_of
from fixtures.tiny_models import EXPERTS, LAYERS, MODELS, TinyFamily

pytestmark = pytest.mark.engine

HIDDEN, WIDTH = 128, 1024
TIGHT = ("--adapter-rows", "12", "--adapter-memory", "38MiB", "--max-loras", "2")


def wide() -> transformers.PreTrainedModel:
    config = transformers.Qwen3MoeConfig(
        vocab_size=320, hidden_size=HIDDEN, num_hidden_layers=LAYERS, max_position_embeddings=4096,
        intermediate_size=256, moe_intermediate_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        num_experts=EXPERTS, num_experts_per_tok=4, decoder_sparse_step=1, norm_topk_prob=True,
        initializer_range=0.08, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


@pytest.fixture(scope="module")
def family(families: Any) -> Iterator[TinyFamily]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "qwen3_moe_wide", wide)
        yield families("qwen3_moe_wide", 2)


@pytest.fixture(scope="module")
def truth(family: TinyFamily, plain: Any) -> Truth:
    return truth_of({BASE: family.base, "a0": family.merged[0], "a1": family.merged[1]}, plain)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``every``, an adapter that tunes every expert."""
    root = tmp_path_factory.mktemp("adapters")
    experts = {layer: list(range(EXPERTS)) for layer in range(LAYERS)}
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    tensors = {
        expert_key("qwen3_moe", layer, expert, projection): torch.ones(shape, dtype=torch.bfloat16)
        for layer, ids in experts.items()
        for expert in ids
        for projection, shape in shapes.items()
    }
    write_tensors(root / "every", tensors)
    write_expert_config(root / "every", experts)
    return root


@pytest.fixture(scope="module")
def server(family: TinyFamily, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    roots = [root, family.base.parent]
    with running_server(family.base, log, {"a0": family.adapters[0]}, roots, TIGHT) as up:
        yield up


def check(server: Server, truth: Truth, *names: str) -> None:
    """These and no others are served, exactly."""
    assert set(server.models()) == set(names)
    for name in names:
        assert server.complete(name, PROMPTS[0]) == [truth[name].alone], name


def refused(server: Server, name: str, path: Path, code: str) -> None:
    response = server.load(name, path)
    assert response.status_code == 409, response.text
    assert response.json()["error"]["message"].startswith(f"[{code}] adapter '{name}'"), response.text
    assert "unload an adapter" in response.json()["error"]["message"]


def test_unloading_returns_memory_and_makes_room(server: Server, truth: Truth, family: TinyFamily) -> None:
    check(server, truth, BASE, "a0")
    with_a0 = server.mapped_pages()
    for _ in range(2):
        refused(server, "a1", family.adapters[1], "MEMORY_EXHAUSTED")
        assert server.mapped_pages() == with_a0
        check(server, truth, BASE, "a0")
        assert server.unload("a0").status_code == 200
        without = server.mapped_pages()
        # a page for each of the two tensors of a layer: four experts or fewer lie side by side
        assert with_a0 - without == 2 * LAYERS
        assert server.load("a1", family.adapters[1]).status_code == 200
        check(server, truth, BASE, "a1")
        refused(server, "a0", family.adapters[0], "MEMORY_EXHAUSTED")
        assert server.unload("a1").status_code == 200
        assert server.mapped_pages() == without
        assert server.load("a0", family.adapters[0]).status_code == 200
    check(server, truth, BASE, "a0")
    assert server.mapped_pages() == with_a0


def test_more_experts_than_rows(server: Server, truth: Truth, root: Path) -> None:
    held = server.mapped_pages()
    refused(server, "every", root / "every", "ROWS_EXHAUSTED")
    assert server.mapped_pages() == held
    check(server, truth, BASE, "a0")


def test_memory_is_kept_while_a_request_uses_it(server: Server, truth: Truth, family: TinyFamily) -> None:
    with server.streamed("a0", PROMPTS[0], max_tokens=ENDLESS) as chunks:
        assert server.unload("a0").status_code == 200
        refused(server, "a1", family.adapters[1], "MEMORY_EXHAUSTED")
        tokens = [token for chunk in islice(chunks, 24) for choice in chunk["choices"] for token in choice["token_ids"]]
    assert tuple(tokens[:24]) == truth["a0"].alone.tokens
    eventually(lambda: server.load("a1", family.adapters[1]).status_code == 200, "its memory came back with its end")
    check(server, truth, BASE, "a1")
    assert server.unload("a1").status_code == 200
    assert server.load("a0", family.adapters[0]).status_code == 200
