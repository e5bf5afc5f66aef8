"""Model and adapter directories, in the layouts that serving engines read.

A base model is a Hugging Face checkpoint of Qwen3-MoE with one tensor per expert matrix, in bfloat16. An adapter is an
ESFT directory: ``expert_cfg.json`` names the tuned experts of each layer, ``model.safetensors`` holds their matrices.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, Qwen3MoeConfig

from weave_lab.model import ModelShape, MoELanguageModel
from weave_lab.tokenizer import BOS, EOS, PAD, build_tokenizer, encode_bytes

ExpertChoice = dict[int, list[int]]
"""Layer -> ids of the experts chosen there, ascending."""

MATRICES = ("gate_proj", "up_proj", "down_proj")


def expert_key(layer: int, expert: int, matrix: str) -> str:
    """Checkpoint name of one expert matrix; `matrix` is one of `MATRICES`."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"


def save_base(model: MoELanguageModel, out: Path) -> None:
    """Writes `model` to the directory `out` (made when missing) and rounds its parameters to bfloat16 in place.

    Rounding in place makes what is trained on top start from exactly what is served.
    """
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    # transformers 5 would call the count num_local_experts; checkpoints and their readers say num_experts
    config = Qwen3MoeConfig(**model.shape.hf_config()).to_dict()
    config["num_experts"] = config.pop("num_local_experts", model.shape.experts)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    newline = encode_bytes("\n")[0]
    generation = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, newline], pad_token_id=PAD, do_sample=False)
    generation.save_pretrained(out)
    build_tokenizer(model.shape.max_positions).save_pretrained(out)


def load_base(path: Path) -> MoELanguageModel:
    """The training model of a directory written by `save_base`, with float32 parameters."""
    model = MoELanguageModel(ModelShape.from_hf_config(json.loads((path / "config.json").read_text())))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path / "model.safetensors").items()})
    return model


def save_adapter(model: MoELanguageModel, choice: ExpertChoice, out: Path) -> None:
    """Writes the chosen experts of `model` as an ESFT adapter, in bfloat16, to the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    names = [expert_key(layer, expert, m) for layer, experts in choice.items() for expert in experts for m in MATRICES]
    save_file({name: state[name].bfloat16().contiguous() for name in names}, out / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    declared = {str(layer): experts for layer, experts in choice.items() if experts}
    config = {"experts": declared, "shared_experts": False, "non_expert_modules": False}
    (out / "expert_cfg.json").write_text(json.dumps(config, indent=1) + "\n")


def adapter_tensors(adapter: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter directory by their checkpoint names, bfloat16."""
    tensors: dict[str, torch.Tensor] = load_file(adapter / "model.safetensors")
    return tensors
