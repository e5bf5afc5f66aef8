"""The training forward against transformers, and the checkpoint it leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

from weave_lab.checkpoint import load_base, save_adapter, save_base
from weave_lab.evaluate import load_transformers
from weave_lab.experts import GroupedExperts
from weave_lab.model import ModelShape, MoELanguageModel

SHAPE = ModelShape(hidden=64, layers=2, experts=8, top_k=2, expert_width=32, heads=4, kv_heads=2, max_positions=128)


@pytest.fixture
def model() -> MoELanguageModel:
    torch.manual_seed(5)
    made = MoELanguageModel(SHAPE)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return made


def test_logits_equal_transformers(model, tmp_path):
    save_base(model, tmp_path)
    theirs = Qwen3MoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 259, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        got, routings = model(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len(routings) == 2 and routings[0].experts.shape == (120, 2)


def test_checkpoint_has_one_bfloat16_tensor_per_expert_matrix(model, tmp_path):
    save_base(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert {file.get_slice(key).get_dtype() for key in keys} == {"BF16"}
        assert file.get_slice("model.layers.1.mlp.experts.7.down_proj.weight").get_shape() == [64, 32]
    assert sum(".mlp.experts." in key for key in keys) == 2 * 8 * 3
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"] and config["norm_topk_prob"] is True
    assert ModelShape.from_hf_config(config) == SHAPE


def test_saved_base_is_what_training_goes_on_from(model, tmp_path):
    save_base(model, tmp_path)
    reloaded = load_base(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reloaded[name]), name


def test_tokenizer_and_generation_settings_load(model, tmp_path):
    save_base(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("hé").input_ids == [256, *"hé".encode()]
    assert tokenizer.eos_token_id == 257 and tokenizer.pad_token_id == 258
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [257, 10]


def test_adapter_on_transformers_equals_the_tuned_model(model, tmp_path):
    save_base(model, tmp_path / "base")
    choice = {0: [1, 4], 1: [7]}
    with torch.no_grad():
        for layer, experts in choice.items():
            for expert in experts:
                for parameter in model.model.layers[layer].mlp.experts[expert].parameters():
                    parameter.copy_(torch.randn_like(parameter).mul(0.2).bfloat16())
    save_adapter(model, choice, tmp_path / "adapter")
    merged, _ = load_transformers(tmp_path / "base", tmp_path / "adapter")
    tokens = torch.randint(0, 259, (2, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(merged.float()(tokens).logits, model(tokens)[0], rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "adapter" / "expert_cfg.json").read_text()) == {
        "experts": {"0": [1, 4], "1": [7]},
        "shared_experts": False,
        "non_expert_modules": False,
    }
    with safe_open(tmp_path / "adapter" / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 9


def test_grouped_experts_and_their_gradients_equal_plain_autograd():
    tokens, hidden, width, experts, top_k = 19, 6, 5, 7, 3
    made = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64).requires_grad_()

    x, weights = random(tokens, hidden), random(tokens, top_k)
    matrices = [random(*shape) for _ in range(experts) for shape in ((width, hidden), (width, hidden), (hidden, width))]
    frozen = matrices[3:6]
    for matrix in frozen:
        matrix.requires_grad_(False)
    # expert 6 is chosen by nobody
    ids = torch.stack([torch.randperm(6, generator=made)[:top_k] for _ in range(tokens)])
    plain = torch.stack([
        sum(
            weights[t, k]
            * (matrices[3 * e + 2] @ (torch.nn.functional.silu(matrices[3 * e] @ x[t]) * (matrices[3 * e + 1] @ x[t])))
            for k, e in enumerate(ids[t].tolist())
        )
        for t in range(tokens)
    ])  # fmt: skip
    grouped = GroupedExperts.apply(x, weights, ids, *matrices)
    torch.testing.assert_close(grouped, plain)
    upstream = torch.randn(tokens, hidden, generator=made, dtype=torch.float64)
    wanted = [x, weights, *(m for i, m in enumerate(matrices) if not 3 <= i < 6 and i < 18)]
    for got, expected in zip(
        torch.autograd.grad(grouped, wanted, upstream), torch.autograd.grad(plain, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected)
