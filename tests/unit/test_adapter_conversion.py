"""extract and merge: against hand-merged state dicts, and what they refuse."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.adapters import (
    CONFIGS,
    Tensors,
    adapter_tensors,
    base_tensors,
    expert_key,
    moe_layers,
    write_adapter,
    write_base,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from npu_weave.adapters import base_fingerprint, extract, merge, open_adapter, open_checkpoint
from npu_weave.errors import WeaveError

EXPERTS = {1: [3, 0], 2: [4]}


def load_all(directory: Path) -> Tensors:
    """Every tensor of a directory, read by the safetensors library."""
    return {key: tensor for path in sorted(directory.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def code_of(function: Any, *args: Any, **options: Any) -> WeaveError:
    with pytest.raises(WeaveError) as caught:
        function(*args, **options)
    return caught.value


def nothing_left(directory: Path) -> bool:
    return not [path for path in directory.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
@pytest.mark.parametrize("shards", [1, 3])
def test_merge_equals_a_hand_merged_checkpoint_and_extract_undoes_it(
    tmp_path: Path, model_type: str, shards: int
) -> None:
    experts = {layer: [4, layer] for layer in moe_layers(model_type)}
    base = write_base(tmp_path / "base", model_type, shards=shards)
    adapter = write_adapter(tmp_path / "adapter", experts, model_type, shards=2)
    merge(base, adapter, tmp_path / "merged")
    assert_equal(load_all(tmp_path / "merged"), base_tensors(model_type) | adapter_tensors(model_type, experts))
    names = sorted(path.name for path in base.iterdir())
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == names
    assert (tmp_path / "merged/config.json").read_bytes() == (base / "config.json").read_bytes()

    again = extract(base, tmp_path / "merged", tmp_path / "again")
    assert_equal(load_all(tmp_path / "again"), adapter_tensors(model_type, experts))
    assert again.digest == open_adapter(adapter, again.geometry).digest
    assert again.experts == {layer: tuple(sorted(ids)) for layer, ids in experts.items()}
    written = json.loads((tmp_path / "again/expert_cfg.json").read_text())
    assert written["shared_experts"] is written["non_expert_modules"] is False
    assert written["npu_weave"]["base_fingerprint"] == base_fingerprint(base)
    assert nothing_left(tmp_path)


def test_legacy_names_and_common_names_merge_into_the_bases_own(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "mixtral")
    own = adapter_tensors("mixtral", EXPERTS)
    legacy = [key.removeprefix("model.") for key in adapter_tensors("qwen3_moe", EXPERTS)]
    adapter = write_adapter(tmp_path / "adapter", EXPERTS, tensors=dict(zip(legacy, own.values(), strict=True)))
    merge(base, adapter, tmp_path / "merged")
    assert_equal(load_all(tmp_path / "merged"), base_tensors("mixtral") | own)


def test_merge_keeps_metadata_and_leaves_other_weights_behind(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for stray in ("pytorch_model.bin", "model.gguf", "consolidated.safetensors"):
        (base / stray).write_bytes(b"the base's weights in another form")
    merge(base, write_adapter(tmp_path / "adapter", EXPERTS), tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_extract_splits_into_shards_with_an_index(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    tuned = write_base(
        tmp_path / "tuned", tensors=base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS)
    )
    one_expert = 3 * 4 * 6 * 2
    adapter = extract(base, tuned, tmp_path / "out", max_shard_bytes=2 * one_expert)
    assert adapter.layout.shards == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert (tmp_path / "out/model.safetensors.index.json").exists()
    assert_equal(load_all(tmp_path / "out"), adapter_tensors("deepseek_v2", EXPERTS))


def test_one_bit_is_a_difference_and_negative_zero_too(tmp_path: Path) -> None:
    tensors = base_tensors("deepseek_v2")
    tensors[expert_key("deepseek_v2", 1, 2, "gate")].view(-1)[0] = 0.0
    base = write_base(tmp_path / "base", tensors=tensors)
    tuned = {key: tensor.clone() for key, tensor in tensors.items()}
    tuned[expert_key("deepseek_v2", 1, 2, "gate")].view(-1)[0] = -0.0
    tuned[expert_key("deepseek_v2", 2, 0, "down")].view(torch.int16).view(-1)[-1] ^= 1
    adapter = extract(base, write_base(tmp_path / "tuned", tensors=tuned), tmp_path / "out")
    assert adapter.experts == {1: (2,), 2: (0,)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.1.mlp.gate.weight", "router"),
        ("model.layers.2.mlp.shared_experts.up_proj.weight", "shared expert"),
        ("model.embed_tokens.weight", "not an expert"),
        ("model.layers.0.mlp.gate_proj.weight", "not an expert"),
    ],
)
@pytest.mark.parametrize("how", ["changed", "missing", "reshaped"])
def test_extract_refuses_other_differences_and_names_them(tmp_path: Path, name: str, kind: str, how: str) -> None:
    tuned = base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS)
    if how == "changed":
        tuned[name] = tuned[name] + 1
    elif how == "reshaped":
        tuned[name] = tuned[name].T.contiguous()
    else:
        del tuned[name]
    base = write_base(tmp_path / "base")
    error = code_of(extract, base, write_base(tmp_path / "tuned", tensors=tuned), tmp_path / "out")
    assert error.code == "EXTRACT_OTHERS_DIFFER"
    assert f"{name} ({kind})" in error.got
    assert not (tmp_path / "out").exists()
    assert nothing_left(tmp_path)


def test_extract_refuses_added_tensors(tmp_path: Path) -> None:
    tuned = base_tensors("deepseek_v2") | {"model.layers.1.mlp.experts.0.up_proj.lora_A.weight": torch.ones(2)}
    base = write_base(tmp_path / "base")
    error = code_of(extract, base, write_base(tmp_path / "tuned", tensors=tuned), tmp_path / "out")
    assert error.code == "EXTRACT_OTHERS_DIFFER"
    assert "lora_A" in error.got and "added" in error.got


def test_extract_refuses_equal_checkpoints(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    error = code_of(extract, base, write_base(tmp_path / "tuned", shards=2), tmp_path / "out")
    assert error.code == "EXTRACT_NO_DIFFERENCE"


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"routed_scaling_factor": 2.0}, True),
        ({"num_experts_per_tok": 3}, True),
        ({"rope_theta": 5.0}, True),
        ({"tie_word_embeddings": True}, True),
        ({"transformers_version": "9.9", "use_cache": False, "router_aux_loss_coef": 0.1}, False),
        ({"dtype": None, "torch_dtype": "bfloat16"}, False),
        ({"moe_layer_freq": 1}, False),
    ],
)
def test_extract_compares_the_settings_that_matter(tmp_path: Path, change: dict[str, Any], matters: bool) -> None:
    base = write_base(tmp_path / "base")
    tensors = base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS)
    tuned = write_base(tmp_path / "tuned", tensors=tensors, **change)
    if matters:
        error = code_of(extract, base, tuned, tmp_path / "out")
        assert error.code == "EXTRACT_CONFIG_DIFFERS"
        assert next(iter(change)).replace("num_experts_per_tok", "top_k") in error.got
    else:
        extract(base, tuned, tmp_path / "out")


def fuse(tensors: Tensors) -> None:
    for layer in (1, 2):
        names = [expert_key("deepseek_v2", layer, expert, "down") for expert in range(5)]
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack([tensors.pop(name) for name in names])


def as_float(tensors: Tensors) -> None:
    for name in tensors:
        tensors[name] = tensors[name].float()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (fuse, "CHECKPOINT_FUSED_EXPERTS"),
        (as_float, "CHECKPOINT_TENSOR_DTYPE"),
        (lambda t: t.pop(expert_key("deepseek_v2", 2, 4, "up")), "CHECKPOINT_TENSOR_MISSING"),
        (lambda t: t.pop("model.layers.1.mlp.gate.weight"), "CHECKPOINT_TENSOR_MISSING"),
        (
            lambda t: t.update({expert_key("deepseek_v2", 2, 4, "up"): torch.ones(6, 4, dtype=torch.bfloat16)}),
            "CHECKPOINT_TENSOR_SHAPE",
        ),
    ],
)
def test_a_base_checkpoint_must_be_whole(tmp_path: Path, change: Any, code: str) -> None:
    tensors = base_tensors("deepseek_v2")
    change(tensors)
    base = write_base(tmp_path / "base", tensors=tensors)
    adapter = write_adapter(tmp_path / "adapter", EXPERTS)
    assert code_of(merge, base, adapter, tmp_path / "merged").code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_the_shards_of_a_base_must_agree_with_its_index(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", shards=2)
    open_checkpoint(base)
    twice = load_file(base / "model-00001-of-00002.safetensors")
    first = sorted(twice)[0]
    second = load_file(base / "model-00002-of-00002.safetensors")
    save_file(second | {first: twice[first]}, base / "model-00002-of-00002.safetensors")
    assert code_of(open_checkpoint, base).code == "CHECKPOINT_TENSOR_DUPLICATE"
    second.pop(sorted(second)[0])
    save_file(second, base / "model-00002-of-00002.safetensors")
    assert code_of(open_checkpoint, base).code == "CHECKPOINT_TENSOR_MISSING"
    (base / "model-00002-of-00002.safetensors").unlink()
    assert code_of(open_checkpoint, base).code == "FILE_MISSING"
    for weight_map in ({"a": "../x.safetensors"}, {"a": 1}, [], {}):
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert code_of(open_checkpoint, base).code == "CHECKPOINT_INDEX_INVALID"


def test_a_base_without_safetensors(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    assert code_of(open_checkpoint, base).code == "FILE_MISSING"


def test_the_fingerprint_is_the_routers_not_the_sharding_or_the_experts(tmp_path: Path) -> None:
    one = base_fingerprint(write_base(tmp_path / "one"))
    tuned = base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS)
    assert base_fingerprint(write_base(tmp_path / "sharded", shards=3)) == one
    assert base_fingerprint(write_base(tmp_path / "tuned", tensors=tuned)) == one
    other = base_tensors("deepseek_v2")
    other["model.layers.2.mlp.gate.weight"].view(torch.int16).view(-1)[-1] ^= 1
    assert base_fingerprint(write_base(tmp_path / "other", tensors=other)) != one
    assert base_fingerprint(write_base(tmp_path / "top3", num_experts_per_tok=3)) != one


def test_merge_refuses_an_adapter_of_another_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    tuned = base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS)
    extract(base, write_base(tmp_path / "tuned", tensors=tuned), tmp_path / "adapter")
    other = write_base(tmp_path / "other", tensors=base_tensors("deepseek_v2", seed=5))
    assert code_of(merge, other, tmp_path / "adapter", tmp_path / "merged").code == "ADAPTER_BASE_MISMATCH"


def test_output_is_never_overwritten(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", EXPERTS)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    assert code_of(merge, base, adapter, base).code == "OUTPUT_EXISTS"
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert code_of(merge, base, adapter, tmp_path / "file").code == "OUTPUT_EXISTS"
    assert code_of(merge, base, adapter, tmp_path / "file/below").code == "OUTPUT_WRITE_FAILED"
    (tmp_path / "empty").mkdir()
    merge(base, adapter, tmp_path / "empty")
    merge(base, adapter, tmp_path / "new/deep/out")
    assert nothing_left(tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", EXPERTS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    error = code_of(merge, base, adapter, tmp_path / "merged")
    assert error.code == "OUTPUT_WRITE_FAILED"
    assert "No space left" in error.got
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_interrupted_merge_leaves_nothing_behind(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", EXPERTS)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "merged", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_progress_grows_to_its_total(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base", shards=2), write_adapter(tmp_path / "adapter", EXPERTS)
    seen: list[tuple[str, int, int]] = []
    merge(base, adapter, tmp_path / "merged", progress=lambda *event: seen.append(event))
    extract(base, tmp_path / "merged", tmp_path / "again", progress=lambda *event: seen.append(event))
    for stage in ("merge", "compare", "write"):
        events = [event for event in seen if event[0] == stage]
        assert [done for _, done, _ in events] == sorted(done for _, done, _ in events)
        assert events[-1][1] == events[-1][2] > 0
