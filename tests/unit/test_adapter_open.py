"""Adapters that are valid: what the handle says, and that it gives the bytes of the files."""

from __future__ import annotations

import dataclasses
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.adapters import CONFIGS, adapter_tensors, expert_key, moe_layers, write_adapter

from npu_weave.adapters import MoEGeometry, open_adapter
from npu_weave.errors import WeaveError

EXPERTS = {1: [3, 0], 2: [4]}
GEOMETRY = MoEGeometry.from_config(CONFIGS["deepseek_v2"])


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
@pytest.mark.parametrize("shards", [1, 3])
def test_an_adapter_gives_the_bytes_of_its_files(tmp_path: Path, model_type: str, shards: int) -> None:
    experts = {layer: [4, layer] for layer in moe_layers(model_type)}
    tensors = adapter_tensors(model_type, experts)
    write_adapter(tmp_path, experts, model_type, tensors, shards, index=shards > 1)
    adapter = open_adapter(tmp_path, MoEGeometry.from_config(CONFIGS[model_type]))
    assert adapter.experts == {layer: tuple(sorted(ids)) for layer, ids in experts.items()}
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert adapter.path == tmp_path.resolve()
    for layer, ids in adapter.experts.items():
        for expert in ids:
            read = adapter.expert(layer, expert)
            for projection in ("gate", "up", "down"):
                expected = tensors[expert_key(model_type, layer, expert, projection)]
                assert torch.equal(getattr(read, projection), expected), (layer, expert, projection)


def test_mixtral_adapters_may_use_the_common_names(tmp_path: Path) -> None:
    experts = {0: [1], 2: [0, 2]}
    own = adapter_tensors("mixtral", experts)
    common = dict(zip(adapter_tensors("qwen3_moe", experts), own.values(), strict=True))
    geometry = MoEGeometry.from_config(CONFIGS["mixtral"])
    first = open_adapter(write_adapter(tmp_path / "own", experts, tensors=own), geometry)
    second = open_adapter(write_adapter(tmp_path / "common", experts, tensors=common), geometry)
    assert first.digest == second.digest
    assert torch.equal(first.expert(2, 0).up, second.expert(2, 0).up)


def test_legacy_keys_without_model(tmp_path: Path) -> None:
    tensors = adapter_tensors("deepseek_v2", EXPERTS)
    legacy = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS, tensors=legacy), GEOMETRY)
    assert torch.equal(adapter.expert(2, 4).down, tensors[expert_key("deepseek_v2", 2, 4, "down")])


def test_layers_without_experts_are_left_out(tmp_path: Path) -> None:
    tensors = adapter_tensors("deepseek_v2", {2: [4]})
    adapter = open_adapter(write_adapter(tmp_path, {1: [], 2: [4]}, tensors=tensors), GEOMETRY)
    assert adapter.experts == {2: (4,)}


def test_other_files_do_no_harm(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS)
    (tmp_path / "README.md").write_text("an adapter")
    (tmp_path / "tokenizer.json").write_text("not even JSON")
    (tmp_path / "sub").mkdir()
    open_adapter(tmp_path, GEOMETRY)


def test_the_handle_is_immutable_and_pickles(tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS), GEOMETRY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        adapter.geometry = GEOMETRY  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(adapter))
    assert (copy.digest, copy.experts) == (adapter.digest, adapter.experts)


def test_an_expert_it_does_not_tune_is_an_error(tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS), GEOMETRY)
    for ask in (adapter.expert, adapter.expert_digest):
        with pytest.raises(WeaveError) as caught:
            ask(1, 1)
        assert caught.value.code == "ADAPTER_EXPERT_UNKNOWN"


def test_each_read_gives_memory_of_its_own(tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS), GEOMETRY)
    before = adapter.expert(1, 0).gate.clone()
    adapter.expert(1, 0).gate.zero_()
    assert torch.equal(adapter.expert(1, 0).gate, before)


def test_many_threads_read_one_handle(tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS), GEOMETRY)
    expected = adapter.expert(1, 3).down
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: adapter.expert(1, 3).down, range(64)))
    assert all(torch.equal(one, expected) for one in read)


def test_a_handle_keeps_no_file_open(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS, shards=3)
    before = len(os.listdir("/proc/self/fd"))
    adapters = [open_adapter(tmp_path, GEOMETRY) for _ in range(20)]
    assert all(adapter.digest == adapters[0].digest for adapter in adapters)
    assert len(os.listdir("/proc/self/fd")) == before


def test_equal_experts_have_equal_digests(tmp_path: Path) -> None:
    tensors = adapter_tensors("deepseek_v2", EXPERTS)
    for projection in ("gate", "up", "down"):
        source = expert_key("deepseek_v2", 1, 0, projection)
        tensors[expert_key("deepseek_v2", 2, 4, projection)] = tensors[source].clone()
    adapter = open_adapter(write_adapter(tmp_path, EXPERTS, tensors=tensors), GEOMETRY)
    assert adapter.expert_digest(1, 0) == adapter.expert_digest(2, 4) != adapter.expert_digest(1, 3)


@pytest.mark.parametrize("how", ["rewritten", "replaced", "truncated", "removed", "swapped for a link"])
def test_a_file_that_changes_after_opening_is_detected(tmp_path: Path, how: str) -> None:
    directory = write_adapter(tmp_path / "a", EXPERTS)
    other = write_adapter(tmp_path / "b", EXPERTS, tensors=adapter_tensors("deepseek_v2", EXPERTS, seed=9))
    shard = directory / "model.safetensors"
    adapter = open_adapter(directory, GEOMETRY)
    if how == "rewritten":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        before = shard.stat().st_mtime_ns
        shard.write_bytes(data)
        os.utime(shard, ns=(before + 1, before + 1))
    elif how == "replaced":
        (other / "model.safetensors").rename(shard)
    elif how == "truncated":
        os.truncate(shard, shard.stat().st_size - 8)
    elif how == "removed":
        shard.unlink()
    else:
        shard.unlink()
        shard.symlink_to(other / "model.safetensors")
    with pytest.raises(WeaveError) as caught:
        adapter.expert(2, 4)
    assert caught.value.code == ("FILE_MISSING" if how == "removed" else "FILE_CHANGED")
    with pytest.raises(WeaveError):
        _ = adapter.digest


def test_a_file_that_changes_during_a_read_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_adapter(tmp_path, EXPERTS) / "model.safetensors"
    adapter = open_adapter(tmp_path, GEOMETRY)
    read = os.preadv

    def read_then_change(*arguments: Any) -> int:
        count = read(*arguments)
        before = shard.stat().st_mtime_ns
        shard.write_bytes(bytes(shard.stat().st_size))
        os.utime(shard, ns=(before + 1, before + 1))
        return count

    monkeypatch.setattr(os, "preadv", read_then_change)
    with pytest.raises(WeaveError) as caught:
        adapter.expert(2, 4)
    assert caught.value.code == "FILE_CHANGED"
