"""A base model and adapters whose files take no disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.footprint_synthetic import synthetic_adapters
from weave_bench.whole_engine.plan import ARCHITECTURES

_MARK = 8
"""Values at the beginning of a matrix that are not zero, and differ between adapters and experts."""


def write_base(path: Path, model: Mapping[str, Any]) -> MoEGeometry:
    """Write a model to the new directory `path`, of its weights only routers and experts, as holes; its geometry.

    An engine makes weights up and needs the config alone; adapters are checked against routers and experts' shapes.
    """
    path.mkdir(parents=True)
    config = {**model, "architectures": [ARCHITECTURES[model["model_type"]]], "norm_topk_prob": False}
    (path / "config.json").write_text(json.dumps(config))
    geometry = MoEGeometry.from_config(config)
    _write_experts(path, geometry, dict.fromkeys(geometry.moe_layers, range(geometry.num_experts)), seed=0)
    router = [geometry.num_experts, geometry.hidden_size]
    nbytes = 2 * math.prod(router)
    names = [f"model.layers.{layer}.mlp.gate.weight" for layer in geometry.moe_layers]
    header = {
        name: {"dtype": "BF16", "shape": router, "data_offsets": [at * nbytes, (at + 1) * nbytes]}
        for at, name in enumerate(names)
    }
    _write_hollow(path / "routers.safetensors", header, len(names) * nbytes, torch.Generator().manual_seed(0))
    return geometry


def adapter_sets(geometry: MoEGeometry, count: int) -> list[ExpertSets]:
    """Experts that each of `count` adapters tunes: as many as the ten published ones, then these moved by one."""
    published = [sets for _, sets in synthetic_adapters(geometry)]

    def moved(sets: ExpertSets, by: int) -> ExpertSets:
        return {
            layer: tuple(sorted((expert + by) % geometry.num_experts for expert in ids)) for layer, ids in sets.items()
        }

    return [moved(published[number % len(published)], number // len(published)) for number in range(count)]


def write_hollow_adapter(path: Path, geometry: MoEGeometry, sets: ExpertSets, seed: int) -> Path:
    """Write an adapter of zeros but for a few values of each matrix; returns `path`, a new directory.

    Its files are as long as any adapter's, and mostly holes, which a file system keeps no blocks for. No two experts
    are alike, so every one gets rows of its own.
    """
    path.mkdir(parents=True)
    _write_experts(path, geometry, sets, seed)
    experts_of = {str(layer): list(ids) for layer, ids in sets.items()}
    (path / "expert_cfg.json").write_text(
        json.dumps({"experts": experts_of, "shared_experts": False, "non_expert_modules": False})
    )
    return path


def _write_experts(path: Path, geometry: MoEGeometry, sets: Mapping[int, Sequence[int]], seed: int) -> None:
    """One shard a layer."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = [geometry.moe_intermediate_size, geometry.hidden_size], geometry.hidden_size
    shapes = {"gate": inner, "up": inner, "down": [outer, geometry.moe_intermediate_size]}
    for layer, experts in sets.items():
        header, end = {}, 0
        for expert in experts:
            for projection, shape in shapes.items():
                begin, end = end, end + 2 * math.prod(shape)
                name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
                header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        _write_hollow(path / f"layer-{layer}.safetensors", header, end, generator)


def _write_hollow(path: Path, header: Mapping[str, Mapping[str, Any]], nbytes: int, generator: torch.Generator) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        data = file.tell()
        for entry in header.values():
            file.seek(data + entry["data_offsets"][0])
            mark = torch.randn(_MARK, generator=generator).bfloat16()
            file.write(mark.view(torch.int16).numpy().tobytes())
        file.truncate(data + nbytes)


def memory_for(geometry: MoEGeometry, sets: list[ExpertSets]) -> int:
    """Bytes of pages that these adapters need at most: their experts, and a page's edge here and there."""
    expert = 3 * 2 * geometry.hidden_size * geometry.moe_intermediate_size
    tuned = sum(len(ids) for each in sets for ids in each.values())
    return tuned * expert + 2 * len(geometry.moe_layers) * (len(sets) + 1) * (2 << 20)
