"""What the servers serve: the small model's own adapters, more like them, and merged checkpoints."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from weave_bench.serving.workload import Asked
from weave_lab.checkpoint import MATRICES, adapter_tensors, expert_key, save_adapter, save_base
from weave_lab.model import ModelShape, MoELanguageModel

_NOISE = 0.01
"""Size of the change that makes one more adapter of one that ships, relative to each matrix's own spread."""

WIDE = ModelShape(
    hidden=1024, layers=4, experts=64, top_k=6, expert_width=512, heads=8, kv_heads=2, head_dim=64, max_positions=4096
)
"""Of random weights, for speed alone: 0.8 GB of experts, far more than any processor caches."""
_TUNED = 7
"""Experts a layer that an adapter of it tunes: the mean of the paper's gate-math."""


@dataclass(frozen=True)
class Adapter(Asked):
    """An adapter in its directory.

    Attributes:
        experts: tuned, over all layers.
    """

    path: Path
    experts: int


def make_adapters(models: Path, count: int, scratch: Path, *, noise: float = _NOISE) -> list[Adapter]:
    """`count` adapters with contents of their own: first those that ship, then changed copies of them below `scratch`.

    A copy tunes the same experts as its original, to other values: so it shares no row with it, and prompts of the
    domain reach its experts as often.

    Args:
        noise: size of the change, relative to each matrix's own spread.
    """
    shipped = sorted((models / "adapters").iterdir())
    made = []
    for index in range(count):
        source = shipped[index % len(shipped)]
        turn = index // len(shipped) + 1
        name = source.name if turn == 1 else f"{source.name}-{turn}"
        path = source if turn == 1 else _changed(source, scratch / "adapters" / name, index, noise)
        made.append(Adapter(name, source.name, path, _tuned(path)))
    return made


def make_wide(domains: Sequence[str], scratch: Path) -> tuple[Path, list[Adapter]]:
    """A base model of `WIDE` below `scratch`, and an adapter for each of `domains`, whose prompts it gets."""
    torch.manual_seed(0)
    model = MoELanguageModel(WIDE)
    base = scratch / "wide" / "base"
    save_base(model, base)
    made = []
    weights = model.state_dict()
    for seed, domain in enumerate(domains):
        drawn = random.Random(seed)
        choice = {layer: sorted(drawn.sample(range(WIDE.experts), _TUNED)) for layer in range(WIDE.layers)}
        for layer, experts in choice.items():
            for expert in experts:
                for matrix in MATRICES:
                    weights[expert_key(layer, expert, matrix)].mul_(1 + _NOISE * (seed + 1))
        path = scratch / "wide" / domain
        save_adapter(model, choice, path)
        made.append(Adapter(f"wide-{domain}", domain, path, _tuned(path)))
    return base, made


def merge(base: Path, adapter: Adapter, scratch: Path) -> Path:
    """The directory of a checkpoint of its own with the adapter's experts in it, written below `scratch`."""
    out = scratch / "merged" / adapter.name
    command = ["adapter", "merge", "--base", str(base), "--adapter", str(adapter.path), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "npu_weave", *command], check=True, stdout=subprocess.DEVNULL)
    return out


def _changed(source: Path, out: Path, seed: int, size: float) -> Path:
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in sorted(adapter_tensors(source).items()):
        noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * size
        tensors[name] = (tensor.float() + noise).bfloat16()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "expert_cfg.json", out / "expert_cfg.json")
    return out


def _tuned(path: Path) -> int:
    return sum(map(len, json.loads((path / "expert_cfg.json").read_text())["experts"].values()))
