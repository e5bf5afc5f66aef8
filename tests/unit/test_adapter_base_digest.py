"""An adapter's expert is recognised as the base's own by its digest, however either is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.adapters import CONFIGS, base_tensors, expert_key, moe_layers, write_adapter, write_base

from npu_weave.adapters import MoEGeometry, open_adapter, open_checkpoint
from npu_weave.adapters.digest import digest_base_expert


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_unchanged_experts_have_the_digest_of_the_bases(tmp_path: Path, model_type: str) -> None:
    layer = moe_layers(model_type)[-1]
    checkpoint = open_checkpoint(write_base(tmp_path / "base", model_type, shards=3))
    base = base_tensors(model_type)
    tensors = {
        name: base[name].clone()
        for expert in (0, 2, 3)
        for name in (expert_key(model_type, layer, expert, projection) for projection in ("gate", "up", "down"))
    }
    changed = tensors[expert_key(model_type, layer, 2, "down")].view(torch.uint8)
    changed[-1, -1] ^= 1
    path = write_adapter(tmp_path / "adapter", {layer: [0, 2, 3]}, model_type, tensors=tensors)
    digests = open_adapter(path, MoEGeometry.from_config(CONFIGS[model_type])).digests.experts
    same = {expert: digests[layer, expert] == digest_base_expert(checkpoint, layer, expert) for expert in (0, 2, 3)}
    assert same == {0: True, 2: False, 3: True}
    assert digests[layer, 0] != digest_base_expert(checkpoint, layer, 3)


def test_an_expert_that_the_checkpoint_lacks_has_none(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_base(tmp_path / "base", "deepseek_v2"))
    layer = moe_layers("deepseek_v2")[0]
    assert digest_base_expert(checkpoint, layer, 0) is not None
    assert digest_base_expert(checkpoint, layer, checkpoint.geometry.num_experts) is None
