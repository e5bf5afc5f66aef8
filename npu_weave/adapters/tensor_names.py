"""Names of expert tensors in checkpoints and adapters, and what they mean.

Two spellings exist: `model.layers.{l}.mlp.experts.{e}.{gate,up,down}_proj.weight`, and Mixtral's
`model.layers.{l}.block_sparse_moe.experts.{e}.{w1,w3,w2}.weight`. ESFT's older adapters leave out `model.`.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from npu_weave.adapters.printable import printable

Projection = Literal["gate", "up", "down"]
Spelling = Literal["mlp", "block_sparse_moe"]

PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")

_PROJECTION_NAMES: dict[Spelling, dict[Projection, str]] = {
    "mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    "block_sparse_moe": {"gate": "w1", "up": "w3", "down": "w2"},
}
_NUMBER = r"(0|[1-9][0-9]{0,5})"
_EXPERT = re.compile(
    rf"(?:model\.)?layers\.{_NUMBER}\.(mlp|block_sparse_moe)\.experts\.{_NUMBER}"
    r"\.(gate_proj|up_proj|down_proj|w1|w3|w2)\.weight"
)
_FUSED = re.compile(r".*\.experts\.(gate_up_proj|down_proj|w13_weight|w2_weight)(\.weight)?")


class TensorKey(NamedTuple):
    """One projection of one expert; `layer` is the model's layer index."""

    layer: int
    expert: int
    projection: Projection


def parse_expert_name(name: str) -> tuple[TensorKey, Spelling] | None:
    """What an expert tensor's name says, or None for the name of any other tensor."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    layer, spelling, expert, written = match.groups()
    for known, names in _PROJECTION_NAMES.items():
        for projection, spelled in names.items():
            if known == spelling and spelled == written:
                return TensorKey(int(layer), int(expert), projection), known
    return None


def expert_name(key: TensorKey, spelling: Spelling) -> str:
    """The full name of an expert tensor in the given spelling."""
    projection = _PROJECTION_NAMES[spelling][key.projection]
    return f"model.layers.{key.layer}.{spelling}.experts.{key.expert}.{projection}.weight"


def is_fused_experts(name: str) -> bool:
    """Whether the tensor holds all experts of a layer in one (3-D) block."""
    return _FUSED.fullmatch(name) is not None


def describe_tensor(name: str) -> str:
    """The name with what kind of tensor it looks like, for error messages."""
    if is_fused_experts(name):
        kind = "experts fused into one tensor"
    elif "shared_expert" in name:
        kind = "shared expert"
    elif re.search(r"\.(mlp|block_sparse_moe)\.gate\.", name):
        kind = "router"
    elif ".experts." in name:
        kind = "not an expert projection's weight"
    else:
        kind = "not an expert"
    return f"{printable(name)} ({kind})"
