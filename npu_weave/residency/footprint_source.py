"""Whose memory to measure: a model with its adapters, or a known geometry with expert configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from npu_weave.adapters.adapter import open_adapter
from npu_weave.adapters.expert_config import read_expert_config_file
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.errors import AdapterError, ConfigError
from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.footprint_synthetic import synthetic_adapters

Origin = Literal["adapters", "expert configurations", "synthetic"]

GEOMETRIES: dict[str, MoEGeometry] = {
    "deepseek-v2-lite": MoEGeometry(
        model_type="deepseek_v2",
        num_layers=27,
        moe_layers=tuple(range(1, 27)),
        num_experts=64,
        top_k=6,
        hidden_size=2048,
        moe_intermediate_size=1408,
        dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True)
class FootprintSource:
    """A base model's geometry and the adapters to load beside it, in this order.

    Attributes:
        title: for people.
        origin: where the sets of experts come from.
        geometry: of the base model.
        adapters: name and tuned experts of each.
    """

    title: str
    origin: Origin
    geometry: MoEGeometry
    adapters: tuple[tuple[str, ExpertSets], ...]

    @property
    def e_max(self) -> int:
        """The most experts any of the adapters tunes in any layer: the tightest padding that fits them all."""
        return max((len(ids) for _, sets in self.adapters for ids in sets.values()), default=0)


def source_from_model(base: Path, adapters: Sequence[Path]) -> FootprintSource:
    """A model directory and adapter directories; reads headers, no weights.

    Raises:
        CheckpointError, UnsupportedError: see `MoEGeometry.from_model_dir`.
        AdapterError: see `open_adapter`.
    """
    geometry = MoEGeometry.from_model_dir(base)
    opened = tuple((path.name, open_adapter(path, geometry).experts) for path in adapters)
    return FootprintSource(f"the model {base}", "adapters", geometry, opened)


def source_from_geometry(name: str, configs: Sequence[Path]) -> FootprintSource:
    """A geometry of `GEOMETRIES` with ESFT expert configurations, or with synthetic ones when none are given.

    Raises:
        ConfigError: FOOTPRINT_ARGUMENT, no such geometry.
        AdapterError: a configuration is malformed or does not fit the geometry.
    """
    geometry = GEOMETRIES.get(name)
    if geometry is None:
        raise ConfigError("FOOTPRINT_ARGUMENT", "geometry", expected=f"one of {', '.join(GEOMETRIES)}", got=name)
    if configs:
        sets = tuple((path.stem, read_expert_sets(path, geometry)) for path in configs)
        return FootprintSource(f"the geometry of {name}", "expert configurations", geometry, sets)
    return FootprintSource(f"the geometry of {name}", "synthetic", geometry, synthetic_adapters(geometry))


def read_expert_sets(path: Path, geometry: MoEGeometry) -> ExpertSets:
    """The experts an ESFT ``expert_cfg.json`` at `path` declares, without any weights beside it.

    Raises:
        AdapterError: ADAPTER_LAYER_INVALID, ADAPTER_EXPERT_RANGE, or a code of `read_expert_config_file`.
    """
    sets = read_expert_config_file(path).expert_sets()
    for layer, ids in sets.items():
        thing = f"{path} layer {layer}"
        if layer not in geometry.moe_layers:
            first, last = geometry.moe_layers[0], geometry.moe_layers[-1]
            raise AdapterError(
                "ADAPTER_LAYER_INVALID", thing, expected=f"a layer with routed experts ({first}-{last})", got="none"
            )
        if ids[-1] >= geometry.num_experts:
            raise AdapterError(
                "ADAPTER_EXPERT_RANGE", thing, expected=f"ids from 0 to {geometry.num_experts - 1}", got=str(ids[-1])
            )
    return sets
