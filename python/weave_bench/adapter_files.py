"""Adapters on disk, of random bits, in the layout of the ESFT repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from npu_weave.adapters.geometry import MoEGeometry
from weave_bench.plain_layer import Geometry


def geometry_of(geometry: Geometry) -> MoEGeometry:
    """The base model these adapters are for, as npu-weave describes one."""
    layers = range(geometry.layers)
    return MoEGeometry(
        "qwen3_moe", len(layers), tuple(layers), geometry.experts, 6, geometry.hidden, geometry.width, torch.bfloat16
    )


def write_adapter(path: Path, geometry: Geometry, experts: Mapping[int, Sequence[int]], seed: int) -> Path:
    """Writes an adapter that tunes `experts` (layer -> ids), one shard a layer; returns `path`."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "gate": (geometry.width, geometry.hidden),
        "up": (geometry.width, geometry.hidden),
        "down": (geometry.hidden, geometry.width),
    }
    for layer, ids in experts.items():
        tensors = {
            f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight": torch.randint(
                -(2**15), 2**15, shape, generator=generator, dtype=torch.int16
            ).view(torch.bfloat16)
            for expert in ids
            for projection, shape in shapes.items()
        }
        save_file(tensors, path / f"layer-{layer}.safetensors")
    config = {"experts": {str(layer): list(ids) for layer, ids in experts.items()}}
    (path / "expert_cfg.json").write_text(
        json.dumps({**config, "shared_experts": False, "non_expert_modules": False}, indent=1)
    )
    return path
