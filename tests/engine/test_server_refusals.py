"""Adapters that must be refused, over HTTP: each with its code and a client's status, and nothing else changes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures import adapters
from fixtures.adapters import expert_key, write_expert_config, write_tensors
from fixtures.plain_vllm import PROMPTS
from fixtures.server import BASE, Server, completion, running_server, truth_of
from fixtures.tiny_models import EXPERTS, LAYERS, TinyFamily
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.engine

HIDDEN, WIDTH = 128, 64
TUNED = {0: [3], 1: [0, 5]}
SHARD = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Tensors = dict[str, torch.Tensor]


def name_of(layer: int, expert: int, projection: str) -> str:
    return expert_key("qwen3_moe", layer, expert, projection)


def expert_tensors(experts: Mapping[int, list[int]]) -> Tensors:
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return {
        name_of(layer, expert, projection): torch.ones(shape, dtype=torch.bfloat16)
        for layer, ids in experts.items()
        for expert in ids
        for projection, shape in shapes.items()
    }


def write(at: Path, experts: Mapping[int, list[int]] | None = None, shards: int = 1, index: bool = False) -> None:
    """An adapter of `experts` (TUNED), consistent in itself."""
    write_tensors(at, expert_tensors(experts or TUNED), shards, index)
    write_expert_config(at, experts or TUNED)


def change(at: Path, edit: Callable[[Tensors], Any]) -> None:
    """A good adapter but for what `edit` does to its tensors."""
    write(at)
    tensors = load_file(at / SHARD)
    edit(tensors)
    save_file(tensors, at / SHARD)


def missing_shard(at: Path) -> None:
    write(at, shards=2, index=True)
    (at / SECOND).unlink()


def truncated_shard(at: Path) -> None:
    write(at, shards=2)
    os.truncate(at / SECOND, (at / SECOND).stat().st_size - 1)


def zero_length_shard(at: Path) -> None:
    write(at, shards=2)
    os.truncate(at / SECOND, 0)


def wrong_shape(at: Path) -> None:
    change(at, lambda tensors: tensors.update({name_of(1, 5, "up"): torch.ones(WIDTH, HIDDEN // 2).bfloat16()}))


def wrong_dtype(at: Path) -> None:
    change(at, lambda tensors: tensors.update({name_of(1, 5, "up"): torch.ones(WIDTH, HIDDEN)}))


def expert_out_of_range(at: Path) -> None:
    write(at, {1: [EXPERTS]})


def repeated_expert(at: Path) -> None:
    write(at)
    write_expert_config(at, {0: [3], 1: [0, 5, 0]})


def layer_out_of_range(at: Path) -> None:
    write(at, {LAYERS: [0]})


def extra(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda at: change(at, lambda tensors: tensors.update({name: torch.ones(shape).bfloat16()}))


def missing_projection(at: Path) -> None:
    change(at, lambda tensors: tensors.pop(name_of(0, 3, "down")))


def tensor_in_two_shards(at: Path) -> None:
    write(at, shards=2)
    save_file(load_file(at / FIRST) | load_file(at / SECOND), at / SECOND)


def other_geometry(at: Path) -> None:
    adapters.write_adapter(at, {0: [1]}, "qwen3_moe")


def other_family(at: Path) -> None:
    adapters.write_adapter(at, {0: [1]}, "mixtral")


def other_fingerprint(at: Path) -> None:
    write(at)
    write_expert_config(at, TUNED, npu_weave={"base_fingerprint": "0" * 64})


def modules_declared(at: Path) -> None:
    write(at)
    write_expert_config(at, TUNED, shared_experts=True)


def no_expert(at: Path) -> None:
    write(at)
    write_expert_config(at, {0: []})


def no_config(at: Path) -> None:
    write_tensors(at, expert_tensors(TUNED))


def bad_json(at: Path) -> None:
    write(at)
    (at / "expert_cfg.json").write_text('{"experts": {"0": [3]')


def bad_config(at: Path) -> None:
    write(at)
    (at / "expert_cfg.json").write_text('{"experts": {"first": [3]}}')


def no_weights(at: Path) -> None:
    write_expert_config(at, TUNED)


def pickle_beside(at: Path) -> None:
    write(at)
    torch.save(expert_tensors(TUNED), at / "adapter.bin")


def pickle_as_shard(at: Path) -> None:
    write(at)
    (at / SHARD).write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def torch_archive_as_shard(at: Path) -> None:
    write(at)
    torch.save(expert_tensors(TUNED), at / SHARD)


def huge_header(at: Path) -> None:
    write(at)
    with (at / SHARD).open("wb") as file:
        file.write((100 << 20).to_bytes(8, "little") + b"{")
        file.truncate(101 << 20)


def shard_link_leaves(at: Path) -> None:
    write(at)
    outside = at.parents[1] / "outside" / SHARD
    write_tensors(outside.parent, expert_tensors(TUNED))
    (at / SHARD).unlink()
    (at / SHARD).symlink_to(outside)


def config_is_directory(at: Path) -> None:
    no_config(at)
    (at / "expert_cfg.json").mkdir()


class Case(NamedTuple):
    """A directory made by `build`, and the code it must be refused with."""

    build: Callable[[Path], None]
    code: str


GALLERY = {
    "missing shard": Case(missing_shard, "FILE_MISSING"),
    "truncated shard": Case(truncated_shard, "FILE_TRUNCATED"),
    "zero-length shard": Case(zero_length_shard, "FILE_TRUNCATED"),
    "wrong shape": Case(wrong_shape, "ADAPTER_TENSOR_SHAPE"),
    "wrong dtype": Case(wrong_dtype, "ADAPTER_TENSOR_DTYPE"),
    "expert out of range": Case(expert_out_of_range, "ADAPTER_EXPERT_RANGE"),
    "repeated expert": Case(repeated_expert, "ADAPTER_EXPERT_REPEATED"),
    "layer out of range": Case(layer_out_of_range, "ADAPTER_LAYER_INVALID"),
    "shared expert": Case(extra("model.layers.1.mlp.shared_experts.up_proj.weight", 4), "ADAPTER_TENSOR_UNEXPECTED"),
    "router": Case(extra("model.layers.1.mlp.gate.weight", EXPERTS, HIDDEN), "ADAPTER_TENSOR_UNEXPECTED"),
    "attention": Case(extra("model.layers.1.self_attn.q_proj.weight", 4, 4), "ADAPTER_TENSOR_UNEXPECTED"),
    "undeclared expert": Case(extra(name_of(2, 2, "up"), WIDTH, HIDDEN), "ADAPTER_TENSOR_UNEXPECTED"),
    "missing projection": Case(missing_projection, "ADAPTER_TENSOR_MISSING"),
    "tensor in two shards": Case(tensor_in_two_shards, "ADAPTER_TENSOR_DUPLICATE"),
    "base of another geometry": Case(other_geometry, "ADAPTER_TENSOR_SHAPE"),
    "base of another family": Case(other_family, "ADAPTER_TENSOR_UNEXPECTED"),
    "base of another fingerprint": Case(other_fingerprint, "ADAPTER_BASE_MISMATCH"),
    "shared experts declared": Case(modules_declared, "ADAPTER_MODULES_UNSUPPORTED"),
    "no expert": Case(no_expert, "ADAPTER_EMPTY"),
    "no config": Case(no_config, "EXPERT_CONFIG_MISSING"),
    "config is a directory": Case(config_is_directory, "FILE_NOT_REGULAR"),
    "bad JSON": Case(bad_json, "JSON_INVALID"),
    "bad config": Case(bad_config, "EXPERT_CONFIG_INVALID"),
    "no weights": Case(no_weights, "FILE_MISSING"),
    "adapter.bin": Case(pickle_beside, "FILE_IS_PICKLE"),
    "pickle named safetensors": Case(pickle_as_shard, "FILE_IS_PICKLE"),
    "torch archive named safetensors": Case(torch_archive_as_shard, "FILE_IS_PICKLE"),
    "100 MiB header": Case(huge_header, "FILE_HEADER_TOO_LARGE"),
    "shard link leaves": Case(shard_link_leaves, "FILE_OUTSIDE"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters below this directory may be loaded; one beside it, outside, may not."""
    top = tmp_path_factory.mktemp("adapters")
    write(top / "elsewhere")
    (top / "root").mkdir()
    return top / "root"


@pytest.fixture(scope="module")
def running(families: Any, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    family: TinyFamily = families("qwen3_moe")
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with running_server(family.base, log, {"a0": family.adapters[0]}, [root], ["--max-loras", "2"]) as up:
        yield up


@pytest.fixture
def server(running: Server, families: Any, plain: Any) -> Iterator[Server]:
    """The server; after the test it serves what it served before, exactly, and holds no more memory."""
    family: TinyFamily = families("qwen3_moe")
    truth = truth_of({BASE: family.base, "a0": family.merged[0]}, plain)
    held = running.mapped_pages()
    yield running
    assert set(running.models()) == {BASE, "a0"}
    for name in (BASE, "a0"):
        assert running.complete(name, PROMPTS[0]) == [truth[name].alone]
    assert running.mapped_pages() == held


def refused(server: Server, path: Path | str, code: str, status: int, name: str = "bad") -> None:
    """Loading is refused with `code` and `status`, and the name is not served."""
    response = server.load(name, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status), response.text
    assert response.json()["error"]["message"].startswith(f"[{code}] "), response.text
    response = server.client.post("/v1/completions", json=completion(name, PROMPTS[0]))
    assert response.status_code == 404, response.text


@pytest.mark.parametrize("label", GALLERY)
def test_bad_adapter(server: Server, root: Path, label: str) -> None:
    at = root / label.replace(" ", "-")
    at.mkdir()
    GALLERY[label].build(at)
    refused(server, at, GALLERY[label].code, 400)


def test_the_gallery_starts_from_a_good_adapter(server: Server, root: Path) -> None:
    write(root / "good", shards=2, index=True)
    response = server.load("good", root / "good")
    assert response.status_code == 200, response.text
    assert server.unload("good").status_code == 200


def test_bad_paths(server: Server, root: Path) -> None:
    write(root / "inside")
    (root / "link").symlink_to(root.parent / "elsewhere")
    (root / "loop").symlink_to(root / "loop")
    refused(server, root / "nothing", "ADAPTER_NOT_FOUND", 404)
    refused(server, root / "inside" / SHARD, "ADAPTER_NOT_FOUND", 404)
    refused(server, root.parent / "elsewhere", "ADAPTER_PATH_OUTSIDE", 403)
    refused(server, root.parent / "not there either", "ADAPTER_PATH_OUTSIDE", 403)
    refused(server, f"{root}/inside/../../elsewhere", "ADAPTER_PATH_OUTSIDE", 403)
    refused(server, root / "link", "ADAPTER_PATH_OUTSIDE", 403)
    refused(server, f"{root}-beside", "ADAPTER_PATH_OUTSIDE", 403)
    refused(server, "/etc", "ADAPTER_PATH_OUTSIDE", 403)
    for url in ("https://example.org/adapter", "file:///etc", "s3://bucket/adapter"):
        refused(server, url, "ADAPTER_PATH_URL", 400)
    refused(server, f"{root}/inside\0", "ADAPTER_PATH_INVALID", 400)


def test_bad_names(server: Server, root: Path) -> None:
    write(root / "named")
    for name in ("../named", "a b", ".hidden", "-option", "x" * 129, "näme", "a\nb"):
        refused(server, root / "named", "ADAPTER_NAME_INVALID", 400, name)


def test_names_that_are_taken(server: Server, root: Path) -> None:
    """vLLM's own refusals; both names go on to serve what they served."""
    write(root / "taken")
    for name, words in ((BASE, "conflicts with a served base model"), ("a0", "has already been loaded")):
        response = server.load(name, root / "taken")
        assert response.status_code == 400 and words in response.text


def test_a_re_point_to_a_bad_adapter_keeps_the_old_weights(server: Server, root: Path) -> None:
    write(root / "cut", shards=2)
    os.truncate(root / "cut" / SECOND, 100)
    response = server.load("a0", root / "cut", load_inplace=True)
    assert response.status_code == 400 and "[FILE_TRUNCATED] " in response.text
