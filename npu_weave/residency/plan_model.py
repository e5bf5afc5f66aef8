"""A base model by its config alone: every tensor beside the routed experts, and what a token costs in KV cache.

Names are those of the model's published checkpoints. The shapes are written out here from the architectures; tests
hold them to transformers' own models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.errors import CheckpointError

LATENT_ATTENTION = frozenset({"deepseek_v2", "deepseek_v3"})
"""Model types whose attention caches one compressed vector a token and layer (MLA), the same on all ranks."""

Shapes = dict[str, tuple[int, ...]]
_Count = Field(gt=0, lt=2**31)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class LatentAttention(_Settings):
    """Sizes of multi-head latent attention."""

    kv_lora_rank: int = _Count
    qk_nope_head_dim: int = _Count
    qk_rope_head_dim: int = _Count
    v_head_dim: int = _Count
    q_lora_rank: int | None = Field(default=None, gt=0, lt=2**31)


class ModelSettings(_Settings):
    """What a config says beside the routed experts; see `read_settings`.

    Attributes:
        num_key_value_heads: None: as many as attention heads. Of no account with latent attention.
        head_dim: None: hidden size over attention heads. Of no account with latent attention.
        intermediate_size: width of a dense layer's MLP, where the model has dense layers.
        latent: sizes of latent attention, for the types in `LATENT_ATTENTION`.
    """

    vocab_size: int = _Count
    num_attention_heads: int = _Count
    max_position_embeddings: int = _Count
    num_key_value_heads: int | None = Field(default=None, gt=0, lt=2**31)
    head_dim: int | None = Field(default=None, gt=0, lt=2**31)
    intermediate_size: int | None = Field(default=None, gt=0, lt=2**31)
    n_shared_experts: int | None = Field(default=None, ge=0, lt=2**31)
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    latent: LatentAttention | None = None

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    def head_size(self, hidden_size: int) -> int:
        """Elements of one head's query, key or value."""
        return self.head_dim or hidden_size // self.num_attention_heads


def read_settings(config: Mapping[str, Any], geometry: MoEGeometry) -> ModelSettings:
    """Reads a config as a plain mapping, beyond what `geometry` holds already.

    Raises:
        CheckpointError: CHECKPOINT_CONFIG_INVALID: a number is missing or senseless.
    """
    latent = dict(config) if geometry.model_type in LATENT_ATTENTION else None
    # `None` in a config stands for the default
    given = {name: value for name, value in config.items() if value is not None} | {"latent": latent}
    try:
        settings = ModelSettings.model_validate(given)
    except ValidationError as reason:
        first = reason.errors()[0]
        raise CheckpointError(
            "CHECKPOINT_CONFIG_INVALID",
            f"{first['loc'][-1]} in the model's config",
            expected="what the model type needs",
            got=first["msg"],
        ) from None
    if settings.intermediate_size is None and len(geometry.moe_layers) < geometry.num_layers:
        raise CheckpointError(
            "CHECKPOINT_CONFIG_INVALID",
            "intermediate_size in the model's config",
            expected="a number, as the model has dense layers",
            got="nothing",
        )
    return settings


def kv_bytes_per_token(geometry: MoEGeometry, settings: ModelSettings, ranks: int = 1) -> int:
    """Bytes of KV cache that one token takes on one of `ranks` tensor parallel ranks, in the model's dtype.

    Latent attention keeps its vector on every rank; otherwise a rank keeps its share of the heads, at least one.
    """
    if settings.latent is not None:
        elements = settings.latent.kv_lora_rank + settings.latent.qk_rope_head_dim
    else:
        elements = 2 * max(1, settings.kv_heads // ranks) * settings.head_size(geometry.hidden_size)
    return geometry.num_layers * elements * geometry.dtype.itemsize


def shared_tensors(geometry: MoEGeometry, settings: ModelSettings) -> Shapes:
    """Name and shape of every tensor that is no routed expert's, as a checkpoint of the model holds them."""
    hidden = geometry.hidden_size
    shapes: Shapes = {
        "model.embed_tokens.weight": (settings.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not settings.tie_word_embeddings:
        shapes["lm_head.weight"] = (settings.vocab_size, hidden)
    for layer in range(geometry.num_layers):
        parts: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        attention = _grouped(geometry, settings) if settings.latent is None else _latent(hidden, settings)
        parts |= {f"self_attn.{name}": shape for name, shape in attention.items()}
        parts |= _moe(geometry, settings) if layer in geometry.moe_layers else _mlp("mlp", hidden, _width(settings))
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def _grouped(geometry: MoEGeometry, settings: ModelSettings) -> Shapes:
    hidden, size = geometry.hidden_size, settings.head_size(geometry.hidden_size)
    queries, keys = settings.num_attention_heads * size, settings.kv_heads * size
    shapes: Shapes = {
        "q_proj.weight": (queries, hidden),
        "k_proj.weight": (keys, hidden),
        "v_proj.weight": (keys, hidden),
        "o_proj.weight": (hidden, queries),
    }
    if settings.attention_bias:
        shapes |= {f"{name[0]}_proj.bias": (shape[0],) for name, shape in list(shapes.items())}
    if geometry.model_type == "qwen3_moe":
        shapes |= {"q_norm.weight": (size,), "k_norm.weight": (size,)}
    if geometry.model_type == "olmoe":
        shapes |= {"q_norm.weight": (queries,), "k_norm.weight": (keys,)}
    return shapes


def _latent(hidden: int, settings: ModelSettings) -> Shapes:
    sizes, heads = settings.latent, settings.num_attention_heads
    assert sizes is not None
    queries = heads * (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim)
    compressed = sizes.kv_lora_rank + sizes.qk_rope_head_dim
    shapes: Shapes = {
        "kv_a_proj_with_mqa.weight": (compressed, hidden),
        "kv_a_layernorm.weight": (sizes.kv_lora_rank,),
        "kv_b_proj.weight": (heads * (sizes.qk_nope_head_dim + sizes.v_head_dim), sizes.kv_lora_rank),
        "o_proj.weight": (hidden, heads * sizes.v_head_dim),
    }
    if sizes.q_lora_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes |= {
            "q_a_proj.weight": (sizes.q_lora_rank, hidden),
            "q_a_layernorm.weight": (sizes.q_lora_rank,),
            "q_b_proj.weight": (queries, sizes.q_lora_rank),
        }
    if settings.attention_bias:
        shapes |= {"kv_a_proj_with_mqa.bias": (compressed,), "o_proj.bias": (hidden,)}
        if sizes.q_lora_rank is not None:
            shapes["q_a_proj.bias"] = (sizes.q_lora_rank,)
    return shapes


def _moe(geometry: MoEGeometry, settings: ModelSettings) -> Shapes:
    block, experts = geometry.spelling, geometry.num_experts
    shapes: Shapes = {f"{block}.gate.weight": (experts, geometry.hidden_size)}
    if geometry.model_type == "deepseek_v3":
        shapes[f"{block}.gate.e_score_correction_bias"] = (experts,)
    if geometry.model_type in LATENT_ATTENTION and settings.n_shared_experts:
        width = settings.n_shared_experts * geometry.moe_intermediate_size
        shapes |= _mlp(f"{block}.shared_experts", geometry.hidden_size, width)
    return shapes


def _mlp(block: str, hidden: int, width: int) -> Shapes:
    return {
        f"{block}.gate_proj.weight": (width, hidden),
        f"{block}.up_proj.weight": (width, hidden),
        f"{block}.down_proj.weight": (hidden, width),
    }


def _width(settings: ModelSettings) -> int:
    assert settings.intermediate_size is not None  # see read_settings
    return settings.intermediate_size
