"""Weights by formula against transformers' own models and saved checkpoints; what one rank of several holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.tiny_models import MODELS, make_family
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.errors import CheckpointError, ConfigError, UnsupportedError
from npu_weave.residency.footprint_source import GEOMETRIES
from npu_weave.residency.plan_base import BaseCost, base_from_config, base_from_path
from npu_weave.residency.plan_model import kv_bytes_per_token, read_settings, shared_tensors
from npu_weave.residency.plan_paper import PAPER_MODEL

DEEPSEEK_V2: dict[str, Any] = dict(
    model_type="deepseek_v2", vocab_size=102400, hidden_size=5120, intermediate_size=12288, moe_intermediate_size=1536,
    num_hidden_layers=60, num_attention_heads=128, num_key_value_heads=128, n_shared_experts=2, n_routed_experts=160,
    num_experts_per_tok=6, first_k_dense_replace=1, kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, max_position_embeddings=163840,
)  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = DEEPSEEK_V2 | dict(
    model_type="deepseek_v3", vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048,
    num_hidden_layers=61, n_shared_experts=1, n_routed_experts=256, num_experts_per_tok=8, first_k_dense_replace=3,
)  # fmt: skip
QWEN3: dict[str, Any] = dict(
    model_type="qwen3_moe", vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
    num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
    num_experts_per_tok=8, max_position_embeddings=40960,
)  # fmt: skip
OLMOE: dict[str, Any] = dict(
    model_type="olmoe", vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16,
    num_attention_heads=16, num_key_value_heads=16, num_experts=64, num_experts_per_tok=8, max_position_embeddings=4096,
)  # fmt: skip
MIXTRAL: dict[str, Any] = dict(
    model_type="mixtral", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    max_position_embeddings=32768,
)  # fmt: skip

# Billions of parameters as their publishers give them, and bytes of KV cache a token worked out by hand.
PUBLISHED: dict[str, tuple[dict[str, Any], float, int]] = {
    "deepseek-v2-lite": (dict(PAPER_MODEL), 15.7, 27 * 576 * 2),
    "deepseek-v2": (DEEPSEEK_V2, 236, 60 * 576 * 2),
    "deepseek-v3": (DEEPSEEK_V3, 671, 61 * 576 * 2),
    "qwen3-30b-a3b": (QWEN3, 30.5, 2 * 48 * 4 * 128 * 2),
    "olmoe-1b-7b": (OLMOE, 6.92, 2 * 16 * 16 * 128 * 2),
    "mixtral-8x7b": (MIXTRAL, 46.7, 2 * 32 * 8 * 128 * 2),
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: config for name, (config, _, _) in PUBLISHED.items()},
    "tied": QWEN3 | dict(tie_word_embeddings=True, num_hidden_layers=2),
    "biases": QWEN3 | dict(attention_bias=True, num_hidden_layers=2),
    "dense between": QWEN3 | dict(num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3]),
    "few kv heads": OLMOE | dict(num_key_value_heads=4, attention_bias=True, num_hidden_layers=2),
    "latent biases": DEEPSEEK_V2 | dict(attention_bias=True, num_hidden_layers=3),
    "all layers moe": DEEPSEEK_V3 | dict(first_k_dense_replace=0, num_hidden_layers=2, q_lora_rank=None),
    "own head size": MIXTRAL | dict(head_dim=64, num_hidden_layers=2),
}


def meta_model(config: dict[str, Any]) -> transformers.PreTrainedModel:
    """transformers' model of `config`, without memory."""
    settings = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(settings)
    return model


def kept(model: transformers.PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of all parameters, tied ones once, and of the biases that steer V3's router."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    biases = {name: tuple(tensor.shape) for name, tensor in model.named_buffers() if name.endswith("correction_bias")}
    return shapes | biases


def cost(config: dict[str, Any], ranks: int = 1) -> BaseCost:
    return base_from_config(config | {"dtype": "bfloat16"}, title="x", ranks=ranks)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_is_one_of_transformers(name: str) -> None:
    config = VARIANTS[name] | {"dtype": "bfloat16"}
    geometry = MoEGeometry.from_config(config)
    found = shared_tensors(geometry, read_settings(config, geometry))
    ours = {each.replace("block_sparse_moe", "mlp"): shape for each, shape in found.items()}
    theirs = kept(meta_model(VARIANTS[name]))
    experts = {each for each in theirs if ".experts." in each}
    assert ours == {each: shape for each, shape in theirs.items() if each not in experts}
    assert experts
    per_layer = geometry.num_experts * geometry.expert_nbytes // 2
    assert sum(math.prod(theirs[each]) for each in experts) == len(geometry.moe_layers) * per_layer


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_are_those_of_all_parameters(name: str) -> None:
    theirs = kept(meta_model(VARIANTS[name]))
    widths = ((shape, 4 if each.endswith("correction_bias") else 2) for each, shape in theirs.items())
    assert cost(VARIANTS[name]).weights_bytes == sum(math.prod(shape) * width for shape, width in widths)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_published(name: str) -> None:
    config, billions, kv_bytes = PUBLISHED[name]
    found = cost(config)
    assert found.weights_bytes / 2e9 == pytest.approx(billions, rel=2e-3)
    assert found.kv_token_bytes == kv_bytes
    assert found.max_model_len == config["max_position_embeddings"]


def test_the_papers_model_has_the_geometry_that_memory_measures() -> None:
    assert cost(dict(PAPER_MODEL)).geometry == GEOMETRIES["deepseek-v2-lite"]


@pytest.fixture(scope="module", params=sorted(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(request.param, tmp_path_factory.mktemp("models"), adapters=0).base


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_headers_of_a_checkpoint_say_what_the_formula_says(checkpoint: Path, ranks: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    by_headers, by_formula = base_from_path(checkpoint, ranks=ranks), base_from_path(tmp_path, ranks=ranks)
    assert (by_headers.origin, by_formula.origin) == ("checkpoint headers", "config")
    assert by_headers.parts == by_formula.parts
    assert by_headers.weights_bytes == by_formula.weights_bytes
    assert base_from_path(tmp_path / "config.json", ranks=ranks).parts == by_formula.parts
    if ranks == 1:
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            counted = [
                (math.prod(file.get_slice(name).get_shape()), 4 if "correction_bias" in name else 2)
                for name in file.keys()  # noqa: SIM118  (no dictionary)
            ]
        assert by_headers.weights_bytes == sum(elements * width for elements, width in counted)


def test_headers_count_what_a_config_does_not_tell(checkpoint: Path, tmp_path: Path) -> None:
    """A further tensor counts on every rank; tables, drafting layers and a tied head are not served."""
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(checkpoint / "model.safetensors")
    before = base_from_path(checkpoint, ranks=2)
    vocabulary = tensors["lm_head.weight"].numel()
    tensors["model.layers.0.extra.weight"] = torch.zeros(7, 3, dtype=torch.bfloat16)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    tensors["model.layers.4.mlp.up_proj.weight"] = torch.zeros(8, 8, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    after = base_from_path(tmp_path, ranks=2)
    assert after.parts["other"] == 42
    assert after.weights_bytes == before.weights_bytes + 42 - vocabulary * 2 // 2


def test_one_of_two_ranks_of_latent_attention_by_hand() -> None:
    config = dict(
        model_type="deepseek_v2", vocab_size=101, hidden_size=8, intermediate_size=12, moe_intermediate_size=6,
        num_hidden_layers=2, num_attention_heads=4, n_shared_experts=3, n_routed_experts=5, num_experts_per_tok=2,
        first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=10, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=7,
        max_position_embeddings=64,
    )  # fmt: skip
    found = cost(config, ranks=2)
    # q_a and kv_a whole; q_b, kv_b and o by halves
    attention = 10 * 8 + (16 + 2) * 8 + (4 * 5 * 10 + 4 * 10 * 16 + 8 * 4 * 7) // 2
    assert found.parts == {
        "embeddings": 2 * 2 * 51 * 8,
        "norms": 2 * (8 + 2 * (2 * 8 + 10 + 16)),
        "attention": 2 * 2 * attention,
        "dense layers": 2 * 3 * 12 * 8 // 2,
        "routers": 2 * 5 * 8,
        "shared experts": 2 * 3 * (3 * 6) * 8 // 2,
    }
    assert found.expert_bytes == 2 * 5 * 3 * 6 * 8 // 2
    assert found.geometry.moe_intermediate_size == 3
    # the compressed vector is on every rank
    assert found.kv_token_bytes == cost(config).kv_token_bytes == 2 * (16 + 2) * 2


@pytest.mark.parametrize(("ranks", "kv_heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_ranks_of_grouped_attention_share_kv_heads_until_there_is_one(ranks: int, kv_heads: int) -> None:
    found = cost(QWEN3, ranks=ranks)
    assert found.kv_token_bytes == 2 * 48 * kv_heads * 128 * 2
    assert found.parts["attention"] == 48 * 2 * (2 * 2048 * 4096 // ranks + 2 * 2048 * kv_heads * 128)


@pytest.mark.parametrize(
    ("config", "ranks"), [(QWEN3, 0), (QWEN3, 3), (QWEN3, 64), (OLMOE, 32), (DEEPSEEK_V2, -1), (DEEPSEEK_V2, 256)]
)
def test_a_model_that_does_not_split(config: dict[str, Any], ranks: int) -> None:
    with pytest.raises(ConfigError, match=r"PLAN_ARGUMENT.*tensor-parallel-size"):
        cost(config, ranks=ranks)


def test_kv_heads_that_do_not_split() -> None:
    uneven = QWEN3 | dict(num_attention_heads=24, num_key_value_heads=6, moe_intermediate_size=768)
    cost(uneven, ranks=6)
    for ranks in (4, 8):
        with pytest.raises(ConfigError, match="6 KV heads"):
            cost(uneven, ranks=ranks)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"q_lora_rank": -1}, "q_lora_rank"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads"),
    ],
)
def test_a_config_without_sense(change: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"CHECKPOINT_CONFIG_INVALID.*{name}"):
        cost(DEEPSEEK_V2 | change)


def test_models_of_other_types_are_refused() -> None:
    for model_type in ("llama", "qwen2_moe", None):
        with pytest.raises(UnsupportedError, match="MODEL_TYPE_UNSUPPORTED"):
            cost(QWEN3 | {"model_type": model_type})
    with pytest.raises(UnsupportedError, match="MODEL_QUANTIZED"):
        cost(DEEPSEEK_V3 | {"quantization_config": {"quant_method": "fp8"}})


def test_kv_cache_follows_the_dtype() -> None:
    geometry = MoEGeometry.from_config(OLMOE | {"dtype": "float32"})
    assert kv_bytes_per_token(geometry, read_settings(OLMOE, geometry)) == 2 * 16 * 16 * 128 * 4
