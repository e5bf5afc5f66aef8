"""The independent truth: real models of transformers, saved by it, merged by us, loaded by it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from npu_weave.adapters import MoEGeometry, extract, merge, open_adapter

COMMON = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
DEEPSEEK = COMMON | {
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": COMMON | {"moe_intermediate_size": 8, "num_experts": 4, "head_dim": 8},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "olmoe": COMMON | {"num_experts": 4},
    "mixtral": COMMON | {"num_local_experts": 4},
}


def fused_experts(model: Any, layer: int) -> Any:
    return model.model.layers[layer].mlp.experts


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_a_merged_checkpoint_is_the_model_with_those_experts(tmp_path: Path, model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **MODELS[model_type])).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    geometry = MoEGeometry.from_model_dir(tmp_path / "base")
    experts = {layer: [2, 0] for layer in geometry.moe_layers}

    # The adapter's experts, put by hand into the model's own fused [E, 2I, H] and [E, H, I] parameters.
    tensors: dict[str, torch.Tensor] = {}
    for layer, ids in experts.items():
        fused = fused_experts(base, layer)
        for expert in ids:
            gate, up, down = torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 8)
            for projection, tensor in (("gate", gate), ("up", up), ("down", down)):
                tensors[f"layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"] = tensor.bfloat16()
            with torch.no_grad():
                fused.gate_up_proj[expert].copy_(torch.cat([gate, up]))
                fused.down_proj[expert].copy_(down)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter/model.safetensors")
    config = {"experts": {str(layer): ids for layer, ids in experts.items()}}
    (tmp_path / "adapter/expert_cfg.json").write_text(json.dumps(config))

    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    expected, found = base.state_dict(), merged.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name

    base.save_pretrained(tmp_path / "tuned")
    again = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "again")
    assert again.experts == {layer: (0, 2) for layer in geometry.moe_layers}
    assert again.digest == open_adapter(tmp_path / "adapter", geometry).digest


def test_checkpoints_with_fused_experts_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from npu_weave.errors import UnsupportedError

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmoe", **MODELS["olmoe"])).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedError) as caught:
        extract(tmp_path / "base", tmp_path / "fused", tmp_path / "out")
    assert caught.value.code == "CHECKPOINT_FUSED_EXPERTS"
