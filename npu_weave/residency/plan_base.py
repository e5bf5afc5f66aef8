"""What a base model costs on one device: weights by part, routed experts apart, KV cache a token."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from npu_weave.adapters.checkpoint import check_experts, open_checkpoint
from npu_weave.adapters.geometry import MoEGeometry, read_model_config
from npu_weave.adapters.json_file import read_json_object
from npu_weave.errors import ConfigError
from npu_weave.residency.plan_model import ModelSettings, Shapes, kv_bytes_per_token, read_settings, shared_tensors

Origin = Literal["config", "checkpoint headers"]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_PARTS = (
    ("embeddings", re.compile(r"(embed_tokens|lm_head)\.")),
    ("norms", re.compile(r"norm\.")),
    ("attention", re.compile(r"\.self_attn\.")),
    ("shared experts", re.compile(r"\.shared_experts\.")),
    ("routers", re.compile(r"\.gate\.")),
    ("dense layers", re.compile(r"\.mlp\.")),
)
_KV_HEADS = re.compile(r"\.[kv]_proj\.(weight|bias)$")
_SPLIT = re.compile(r"\.((q|q_b|kv_b|gate|up)_proj\.(weight|bias)|(o|down)_proj\.weight)$")
# Kept in float32 whatever the model's dtype.
_FLOAT32 = ".e_score_correction_bias"


@dataclass(frozen=True)
class BaseCost:
    """A base model on one of `ranks` tensor parallel ranks.

    Attributes:
        title: for people.
        origin: whether the shared weights were computed from the config or read from a checkpoint's headers.
        geometry: of the routed experts on this rank: their width is the rank's share.
        ranks: tensor parallel size.
        parts: bytes of the weights beside the routed experts, by part of the model.
        kv_token_bytes: of KV cache for one token.
        max_model_len: the longest request the model is made for, in tokens.
    """

    title: str
    origin: Origin
    geometry: MoEGeometry
    ranks: int
    parts: Mapping[str, int]
    kv_token_bytes: int
    max_model_len: int

    @property
    def shared_bytes(self) -> int:
        """Bytes of all weights beside the routed experts."""
        return sum(self.parts.values())

    @property
    def expert_bytes(self) -> int:
        """Bytes of the base model's routed experts."""
        return len(self.geometry.moe_layers) * self.geometry.num_experts * self.geometry.expert_nbytes

    @property
    def weights_bytes(self) -> int:
        """Bytes of the base model's weights."""
        return self.shared_bytes + self.expert_bytes


def base_from_path(path: Path, *, ranks: int = 1) -> BaseCost:
    """The model at `path`: a config.json, or a directory with one. Where weights lie beside it, their headers count.

    Raises:
        ConfigError: PLAN_ARGUMENT, the model cannot be split over `ranks`.
        CheckpointError, UnsupportedError, AdapterFileError: see `MoEGeometry.from_config` and `open_checkpoint`.
    """
    if path.is_file():
        return base_from_config(read_json_object(path), title=str(path), ranks=ranks)
    if next(path.glob("*.safetensors"), None) is None:
        return base_from_config(read_model_config(path), title=str(path), ranks=ranks)
    checkpoint = open_checkpoint(path)
    check_experts(checkpoint)
    experts = checkpoint.expert_names()
    stored = {name: tensor.shape for name, tensor in checkpoint.tensors.items() if name not in experts}
    return _cost(checkpoint.config, str(path), ranks, stored)


def base_from_config(config: Mapping[str, Any], *, title: str, ranks: int = 1) -> BaseCost:
    """The model that `config` describes; errors as for `base_from_path`."""
    return _cost(config, title, ranks, None)


def _cost(config: Mapping[str, Any], title: str, ranks: int, stored: Shapes | None) -> BaseCost:
    geometry = MoEGeometry.from_config(config)
    settings = read_settings(config, geometry)
    check_ranks(geometry, settings, ranks)
    shapes = shared_tensors(geometry, settings) if stored is None else dict(_served(stored, geometry, settings))
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = next((part for part, pattern in _PARTS if pattern.search(name)), "other")
        itemsize = 4 if name.endswith(_FLOAT32) else geometry.dtype.itemsize
        parts[part] = parts.get(part, 0) + itemsize * rank_elements(name, shape, settings, ranks)
    return BaseCost(
        title=title,
        origin="config" if stored is None else "checkpoint headers",
        geometry=replace(geometry, moe_intermediate_size=geometry.moe_intermediate_size // ranks),
        ranks=ranks,
        parts=parts,
        kv_token_bytes=kv_bytes_per_token(geometry, settings, ranks),
        max_model_len=settings.max_position_embeddings,
    )


def rank_elements(name: str, shape: tuple[int, ...], settings: ModelSettings, ranks: int) -> int:
    """Elements of a tensor that one rank holds: vLLM's split of attention heads, MLP widths and vocabulary.

    Norms, routers and the compressing projections of latent attention are on every rank.
    """
    elements = math.prod(shape)
    if "embed_tokens." in name or "lm_head." in name:
        return elements // shape[0] * math.ceil(shape[0] / ranks)
    if _KV_HEADS.search(name):
        return elements // settings.kv_heads * max(1, settings.kv_heads // ranks)
    return elements // ranks if _SPLIT.search(name) else elements


def check_ranks(geometry: MoEGeometry, settings: ModelSettings, ranks: int) -> None:
    """Makes sure that heads and widths can be split over `ranks`.

    Raises:
        ConfigError: PLAN_ARGUMENT.
    """
    sizes = {"attention heads": settings.num_attention_heads, "expert width": geometry.moe_intermediate_size}
    if len(geometry.moe_layers) < geometry.num_layers:
        sizes["MLP width"] = settings.intermediate_size or 0
    if settings.latent is None and settings.kv_heads > ranks:
        sizes["KV heads"] = settings.kv_heads
    wrong = [f"{value} {name}" for name, value in sizes.items() if ranks < 1 or value % ranks]
    if settings.latent is None and 0 < settings.kv_heads < ranks and ranks % settings.kv_heads:
        wrong.append(f"{settings.kv_heads} KV heads")
    if wrong:
        raise ConfigError(
            "PLAN_ARGUMENT",
            "--tensor-parallel-size",
            expected=f"a positive number that divides {', '.join(wrong)}",
            got=str(ranks),
        )


def _served(stored: Shapes, geometry: MoEGeometry, settings: ModelSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors an engine keeps: not a tied head, no tables of rotary positions, no layers for drafting tokens."""
    for name, shape in stored.items():
        layer = _LAYER.match(name)
        drafting = layer is not None and int(layer[1]) >= geometry.num_layers
        tied = settings.tie_word_embeddings and name == "lm_head.weight"
        if not (drafting or tied or name.endswith("rotary_emb.inv_freq")):
            yield name, shape
