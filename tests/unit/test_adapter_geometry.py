"""The geometry of a base model, from config files and from the configs of transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.adapters import CONFIGS

from npu_weave.adapters import MoEGeometry
from npu_weave.errors import CheckpointError, UnsupportedError, WeaveError

DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "torch_dtype": "bfloat16",
}


def test_deepseek_v2_lite() -> None:
    geometry = MoEGeometry.from_config(DEEPSEEK_V2_LITE)
    assert geometry == MoEGeometry("deepseek_v2", 27, tuple(range(1, 27)), 64, 6, 2048, 1408, torch.bfloat16)
    assert geometry.shape("gate") == geometry.shape("up") == (1408, 2048)
    assert geometry.shape("down") == (2048, 1408)
    # 5.5 + 2.75 pages of 2 MiB, the paper's example
    assert geometry.expert_nbytes == (5.5 + 2.75) * 2**21
    assert geometry.tensor_name(3, 7, "down") == "model.layers.3.mlp.experts.7.down_proj.weight"


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (CONFIGS["qwen3_moe"], (0, 1, 2)),
        (CONFIGS["qwen3_moe"] | {"decoder_sparse_step": 2, "num_hidden_layers": 5}, (1, 3)),
        (CONFIGS["qwen3_moe"] | {"mlp_only_layers": [0, 2]}, (1,)),
        (CONFIGS["deepseek_v2"], (1, 2)),
        (CONFIGS["deepseek_v2"] | {"moe_layer_freq": 2, "num_hidden_layers": 7}, (2, 4, 6)),
        (CONFIGS["deepseek_v3"] | {"first_k_dense_replace": None, "num_hidden_layers": 5}, (3, 4)),
        (CONFIGS["olmoe"], (0, 1, 2)),
        (CONFIGS["mixtral"], (0, 1, 2)),
    ],
)
def test_moe_layers(config: dict[str, Any], layers: tuple[int, ...]) -> None:
    assert MoEGeometry.from_config(config).moe_layers == layers


def test_mixtral_spells_experts_its_own_way() -> None:
    geometry = MoEGeometry.from_config(CONFIGS["mixtral"])
    names = [geometry.tensor_name(0, 1, projection) for projection in ("gate", "up", "down")]
    assert names == [f"model.layers.0.block_sparse_moe.experts.1.{w}.weight" for w in ("w1", "w3", "w2")]


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_the_configs_of_transformers_say_the_same(model_type: str) -> None:
    from transformers import AutoConfig

    settings = dict(CONFIGS[model_type])
    settings["num_attention_heads"] = 2
    settings["eos_token_id"] = settings["bos_token_id"] = settings["pad_token_id"] = 0
    config = AutoConfig.for_model(**settings)
    assert MoEGeometry.from_config(config.to_dict()) == MoEGeometry.from_config(CONFIGS[model_type])


def test_the_served_dtype_wins() -> None:
    assert MoEGeometry.from_config(CONFIGS["olmoe"], dtype=torch.float32).dtype == torch.float32
    assert MoEGeometry.from_config(CONFIGS["olmoe"] | {"dtype": torch.float16}).dtype == torch.float16


def test_to_dict_is_json() -> None:
    said = json.loads(json.dumps(MoEGeometry.from_config(CONFIGS["deepseek_v2"]).to_dict()))
    assert said["moe_layers"] == [1, 2]
    assert said["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "llama"}, "MODEL_TYPE_UNSUPPORTED"),
        ({"model_type": None}, "MODEL_TYPE_UNSUPPORTED"),
        ({"model_type": ["qwen3_moe"]}, "MODEL_TYPE_UNSUPPORTED"),
        ({"quantization_config": {"quant_method": "fp8"}}, "MODEL_QUANTIZED"),
        ({"mlp_only_layers": [0, 1, 2]}, "MODEL_NOT_MOE"),
        ({"num_experts": None}, "CHECKPOINT_CONFIG_INVALID"),
        ({"num_experts": 0}, "CHECKPOINT_CONFIG_INVALID"),
        ({"num_experts": True}, "CHECKPOINT_CONFIG_INVALID"),
        ({"hidden_size": "6"}, "CHECKPOINT_CONFIG_INVALID"),
        ({"num_experts_per_tok": 6}, "CHECKPOINT_CONFIG_INVALID"),
        ({"decoder_sparse_step": 0}, "CHECKPOINT_CONFIG_INVALID"),
        ({"mlp_only_layers": 1}, "CHECKPOINT_CONFIG_INVALID"),
        ({"dtype": None}, "CHECKPOINT_CONFIG_INVALID"),
        ({"dtype": "int4"}, "CHECKPOINT_CONFIG_INVALID"),
    ],
)
def test_senseless_configs_are_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(WeaveError) as caught:
        MoEGeometry.from_config(CONFIGS["qwen3_moe"] | change)
    assert caught.value.code == code


def test_the_refusal_lists_what_is_supported() -> None:
    with pytest.raises(UnsupportedError, match="deepseek_v2, deepseek_v3, mixtral, olmoe, qwen3_moe"):
        MoEGeometry.from_config({"model_type": "llama"})


def test_a_model_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        MoEGeometry.from_model_dir(tmp_path / "nothing")
    assert caught.value.code == "CHECKPOINT_NOT_FOUND"
    with pytest.raises(WeaveError) as missing:
        MoEGeometry.from_model_dir(tmp_path)
    assert missing.value.code == "FILE_MISSING"
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["olmoe"]))
    assert MoEGeometry.from_model_dir(tmp_path) == MoEGeometry.from_config(CONFIGS["olmoe"])
