"""Adapters that are not valid: each kind of fault has a code of its own and names the culprit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.adapters import CONFIGS, Tensors, adapter_tensors, expert_key, write_adapter, write_tensors
from safetensors.torch import save_file

from npu_weave.adapters import Adapter, MoEGeometry, check_finite, open_adapter
from npu_weave.errors import AdapterError, WeaveError

EXPERTS = {1: [3, 0], 2: [4]}
GEOMETRY = MoEGeometry.from_config(CONFIGS["deepseek_v2"])
SOME = expert_key("deepseek_v2", 1, 3, "up")


def refused(path: Path, geometry: MoEGeometry = GEOMETRY, **options: Any) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        open_adapter(path, geometry, **options)
    return caught.value


def changed(change: Callable[[Tensors], Any]) -> Tensors:
    tensors = adapter_tensors("deepseek_v2", EXPERTS)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda t: t.pop(SOME), "ADAPTER_TENSOR_MISSING", "layer 1 expert 3 up"),
        (
            lambda t: t.update({"model.layers.1.mlp.shared_experts.up_proj.weight": torch.ones(4, 6)}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "shared_experts.up_proj.weight (shared expert)",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.ones(5, 6)}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "model.layers.1.mlp.gate.weight (router)",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.gate_up_proj": torch.ones(5, 8, 6)}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "experts fused into one tensor",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(6)}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "model.norm.weight (not an expert)",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.3.up_proj.lora_A": torch.ones(6)}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "lora_A (not an expert projection's weight)",
        ),
        (
            lambda t: t.update({expert_key("deepseek_v2", 1, 1, "up"): t[SOME].clone()}),
            "ADAPTER_TENSOR_UNEXPECTED",
            "experts.1.up_proj",
        ),
        (
            lambda t: t.update({SOME.removeprefix("model."): t[SOME].clone()}),
            "ADAPTER_TENSOR_DUPLICATE",
            "layers.1.mlp.experts.3.up_proj.weight",
        ),
        (lambda t: t.update({SOME: t[SOME].T.contiguous()}), "ADAPTER_TENSOR_SHAPE", SOME),
        (lambda t: t.update({SOME: t[SOME].flatten()}), "ADAPTER_TENSOR_SHAPE", SOME),
        (lambda t: t.update({SOME: t[SOME].float()}), "ADAPTER_TENSOR_DTYPE", SOME),
        (lambda t: t.update({SOME: t[SOME].half()}), "ADAPTER_TENSOR_DTYPE", SOME),
    ],
)
def test_tensors_must_be_exactly_the_declared_experts(
    tmp_path: Path, change: Callable[[Tensors], Any], code: str, named: str
) -> None:
    error = refused(write_adapter(tmp_path, EXPERTS, tensors=changed(change)))
    assert error.code == code
    assert named in str(error)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS)
    save_file({SOME: torch.zeros(4, 6, dtype=torch.bfloat16)}, tmp_path / "second.safetensors")
    error = refused(tmp_path)
    assert error.code == "ADAPTER_TENSOR_DUPLICATE"
    assert "model.safetensors" in error.got and "second.safetensors" in error.got


@pytest.mark.parametrize(
    ("experts", "code"),
    [
        ({1: [5]}, "ADAPTER_EXPERT_RANGE"),
        ({0: [1]}, "ADAPTER_LAYER_INVALID"),
        ({3: [1]}, "ADAPTER_LAYER_INVALID"),
    ],
)
def test_layers_and_experts_must_be_the_base_models(tmp_path: Path, experts: dict[int, list[int]], code: str) -> None:
    assert refused(write_adapter(tmp_path, experts)).code == code


def test_names_of_another_model_type(tmp_path: Path) -> None:
    error = refused(write_adapter(tmp_path, EXPERTS, "mixtral"))
    assert error.code == "ADAPTER_TENSOR_UNEXPECTED"
    assert "deepseek_v2" in str(error)


def test_an_adapter_of_another_base_model(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS, npu_weave={"base_fingerprint": "a" * 64})
    open_adapter(tmp_path, GEOMETRY)
    open_adapter(tmp_path, GEOMETRY, base_fingerprint="a" * 64)
    error = refused(tmp_path, base_fingerprint="b" * 64)
    assert error.code == "ADAPTER_BASE_MISMATCH"
    assert "another base model" in str(error)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"experts": {"1": [3, 3]}}', "ADAPTER_EXPERT_REPEATED"),
        ('{"experts": {"1": [-1]}}', "ADAPTER_EXPERT_RANGE"),
        ('{"experts": {"1": [3]}, "shared_experts": true}', "ADAPTER_MODULES_UNSUPPORTED"),
        ('{"experts": {"1": [3]}, "non_expert_modules": true}', "ADAPTER_MODULES_UNSUPPORTED"),
        ('{"experts": {}}', "ADAPTER_EMPTY"),
        ('{"experts": {"1": []}}', "ADAPTER_EMPTY"),
        ('{"experts": {"01": [3]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"one": [3]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"-1": [3]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": ["3"]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": [3.0]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": [true]}}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": [[1, 3]]}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": [3]}, "shared_experts": "no"}', "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": [3]}, "router": false}', "EXPERT_CONFIG_INVALID"),
        ("{}", "EXPERT_CONFIG_INVALID"),
        ('{"experts": {"1": [3], "1": [4]}}', "JSON_INVALID"),
        ('{"experts": ', "JSON_INVALID"),
        ("[]", "JSON_INVALID"),
        ("", "JSON_INVALID"),
        ("[" * 100_000, "JSON_INVALID"),
        ('{"experts": {"1": [' + "9" * 5000 + "]}}", "JSON_INVALID"),
    ],
)
def test_the_config_must_make_sense(tmp_path: Path, text: str, code: str) -> None:
    write_adapter(tmp_path, EXPERTS)
    (tmp_path / "expert_cfg.json").write_text(text)
    assert refused(tmp_path).code == code


def test_the_config_must_be_text_and_small(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS)
    (tmp_path / "expert_cfg.json").write_bytes(b'{"experts": {"\xff": [1]}}')
    assert refused(tmp_path).code == "JSON_INVALID"
    (tmp_path / "expert_cfg.json").write_text(json.dumps({"experts": {"1": list(range(300_000))}}))
    assert refused(tmp_path).code == "JSON_TOO_LARGE"


def test_the_config_must_be_there(tmp_path: Path) -> None:
    write_tensors(tmp_path, adapter_tensors("deepseek_v2", EXPERTS))
    assert refused(tmp_path).code == "EXPERT_CONFIG_MISSING"


def test_weights_must_be_there(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS)
    (tmp_path / "model.safetensors").unlink()
    assert refused(tmp_path).code == "FILE_MISSING"


def test_nothing_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing").code == "ADAPTER_NOT_FOUND"
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").code == "ADAPTER_NOT_FOUND"


def edit_index(directory: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = directory / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    change(weight_map)
    path.write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m.update({SOME: "model-00009-of-00009.safetensors"}), "FILE_MISSING"),
        (lambda m: m.update({SOME: "../elsewhere.safetensors"}), "FILE_MISSING"),
        (lambda m: m.pop(SOME), "ADAPTER_INDEX_INVALID"),
        (lambda m: m.update({"model.norm.weight": m[SOME]}), "ADAPTER_INDEX_INVALID"),
        (lambda m: m.update({SOME: next(v for v in m.values() if v != m[SOME])}), "ADAPTER_INDEX_INVALID"),
        (lambda m: m.update({SOME: 3}), "ADAPTER_INDEX_INVALID"),
    ],
)
def test_an_index_must_agree_with_the_shards(
    tmp_path: Path, change: Callable[[dict[str, str]], Any], code: str
) -> None:
    write_adapter(tmp_path, EXPERTS, shards=2, index=True)
    open_adapter(tmp_path, GEOMETRY)
    edit_index(tmp_path, change)
    assert refused(tmp_path).code == code


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    write_adapter(tmp_path, EXPERTS, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert refused(tmp_path).code == "ADAPTER_TENSOR_MISSING"


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_truncated_shards(tmp_path: Path, keep: int) -> None:
    shard = write_adapter(tmp_path, EXPERTS) / "model.safetensors"
    os.truncate(shard, keep if keep >= 0 else shard.stat().st_size + keep)
    assert refused(tmp_path).code == "FILE_TRUNCATED"


def header_of(entries: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        header_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 2]}}, b"\0" * 4),
        header_of({"a": {"dtype": "BF17", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        header_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [2, 6]}}, b"\0" * 6),
        header_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [2, 6]}}, b"\0" * 4),
        header_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 5),
        header_of({"a": {"dtype": "BF16", "shape": [-2], "data_offsets": [4, 0]}}, b"\0" * 4),
        header_of({"a": {"dtype": "BF16", "shape": [True], "data_offsets": [0, 2]}}, b"\0" * 2),
        header_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4], "code": ""}}, b"\0" * 4),
        header_of({"a": {"dtype": "BF16", "shape": [2]}}, b"\0" * 4),
        header_of({"a": 3}, b""),
        header_of({"__metadata__": {"format": 3}}, b""),
        header_of(
            {name: {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]} for name in ("a", "b")},
            b"\0" * 4,
        ),
        (9).to_bytes(8, "little") + b"not JSON.",
    ],
)
def test_corrupt_headers(tmp_path: Path, data: bytes) -> None:
    (write_adapter(tmp_path, EXPERTS) / "model.safetensors").write_bytes(data)
    assert refused(tmp_path).code == "FILE_CORRUPT"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    def adapter(directory: str, change: Callable[[Tensors], Any]) -> Adapter:
        return open_adapter(write_adapter(tmp_path / directory, EXPERTS, tensors=changed(change)), GEOMETRY)

    check_finite(adapter("good", lambda t: None))
    with pytest.raises(WeaveError) as caught:
        check_finite(adapter("bad", lambda t: t[SOME].view(-1)[7].fill_(value)))
    assert caught.value.code == "ADAPTER_TENSOR_NOT_FINITE"
    assert caught.value.thing == SOME
