"""The training forward of Qwen3-MoE: same parameters and mathematics as transformers', quicker on a CPU.

Every expert is a module of its own with its own parameters, named as in the checkpoint. Freezing all but some experts
is then a matter of ``requires_grad``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from weave_lab.experts import GroupedExperts
from weave_lab.tokenizer import BOS, EOS, PAD, VOCAB_SIZE


@dataclass(frozen=True)
class ModelShape:
    """The model's dimensions. Every layer is a MoE layer; the gate weights of the top-k experts sum to one."""

    hidden: int = 128
    layers: int = 4
    experts: int = 32
    top_k: int = 4
    expert_width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    max_positions: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    vocab: int = VOCAB_SIZE

    def hf_config(self) -> dict[str, object]:
        """Arguments of transformers' ``Qwen3MoeConfig``."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": self.vocab, "hidden_size": self.hidden,
            "intermediate_size": self.expert_width * self.top_k, "moe_intermediate_size": self.expert_width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "num_experts": self.experts, "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "hidden_act": "silu",
            "max_position_embeddings": self.max_positions, "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}, "attention_bias": False,
            "tie_word_embeddings": False, "use_sliding_window": False, "bos_token_id": BOS, "eos_token_id": EOS,
            "pad_token_id": PAD, "dtype": "bfloat16",
        }  # fmt: skip

    @staticmethod
    def from_hf_config(config: dict[str, object]) -> ModelShape:
        """Inverse of `hf_config`, from the contents of a ``config.json``."""
        names = {
            "hidden": "hidden_size", "layers": "num_hidden_layers", "experts": "num_experts",
            "top_k": "num_experts_per_tok", "expert_width": "moe_intermediate_size", "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "max_positions": "max_position_embeddings",
            "norm_eps": "rms_norm_eps", "vocab": "vocab_size",
        }  # fmt: skip
        rope = config["rope_parameters"]
        if not isinstance(rope, dict):
            raise ValueError(f"config.json: rope_parameters is {rope!r}, not an object")
        return ModelShape(rope_theta=rope["rope_theta"], **{ours: config[theirs] for ours, theirs in names.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Routing:
    """What one layer's router chose.

    Attributes:
        probabilities: float `[tokens, experts]`, softmax over all experts.
        experts: int64 `[tokens, top_k]`.
        weights: float `[tokens, top_k]`, gate weights; they sum to one per token.
    """

    probabilities: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal grouped-query attention with normed queries and keys and rotary positions."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x `[B, T, hidden]`; cos and sin `[T, head_dim]`. Returns `[B, T, hidden]`."""
        batch, length, _ = x.shape
        split = (batch, length, -1, self.shape.head_dim)
        q = _rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        k = _rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class Expert(nn.Module):
    """The matrices of one routed expert, a SwiGLU; `GroupedExperts` runs them."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.expert_width, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.expert_width, bias=False)
        self.down_proj = nn.Linear(shape.expert_width, shape.hidden, bias=False)


class MoE(nn.Module):
    """A router and its experts."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.gate = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.experts = nn.ModuleList(Expert(shape) for _ in range(shape.experts))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """x `[tokens, hidden]`. Returns the layer's output, same shape, and its routing."""
        probabilities = self.gate(x).softmax(-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        matrices = [matrix for expert in self.experts for matrix in expert.parameters()]
        out: torch.Tensor = GroupedExperts.apply(x, weights, experts, *matrices)  # type: ignore[no-untyped-call]
        return out, Routing(probabilities, experts, weights)


class Layer(nn.Module):
    """Attention and MoE, each behind a norm and with a residual."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = MoE(shape)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        moe, routing = self.mlp(self.post_attention_layernorm(x).flatten(0, 1))
        return x + moe.view_as(x), routing


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)


class MoELanguageModel(nn.Module):
    """The whole model; its ``state_dict`` has the keys of a Qwen3-MoE checkpoint with one entry per expert matrix."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # outputs into the residual stream start small, so that depth does not blow it up
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * shape.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 if "embed" in name else scale * parameter.shape[1] ** -0.5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Routing]]:
        """tokens int64 `[B, T]`, padded on the right. Returns float logits `[B, T, vocab]` and each layer's routing."""
        cos, sin = _rotary(tokens.shape[1], self.shape)
        x = self.model.embed_tokens(tokens)
        routings = []
        for layer in self.model.layers:
            x, routing = layer(x, cos, sin)
            routings.append(routing)
        return self.lm_head(self.model.norm(x)), routings


def _rotary(length: int, shape: ModelShape) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
