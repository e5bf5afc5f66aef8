"""How a tuned checkpoint differs from its base."""

from __future__ import annotations

from typing import Any

from npu_weave.adapters.checkpoint import Checkpoint
from npu_weave.adapters.printable import name_some
from npu_weave.adapters.progress import Progress
from npu_weave.adapters.shard import StoredTensor
from npu_weave.adapters.tensor_names import describe_tensor
from npu_weave.errors import CheckpointError

# Read into MoEGeometry, which is compared as a whole: releases of transformers spell these differently.
_IN_GEOMETRY = {
    *("dtype", "torch_dtype", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
    *("num_hidden_layers", "hidden_size", "moe_intermediate_size", "first_k_dense_replace", "moe_layer_freq"),
    *("decoder_sparse_step", "mlp_only_layers", "model_type"),
}
# Bookkeeping and training settings: they change nothing that an engine computes.
_WITHOUT_EFFECT = {
    *("_name_or_path", "_commit_hash", "transformers_version", "auto_map", "use_cache", "pad_token_id"),
    *("attention_dropout", "initializer_range", "output_router_logits", "router_aux_loss_coef"),
    *("aux_loss_alpha", "seq_aux", "router_jitter_noise", "pretraining_tp", "ep_size"),
}


def check_same_config(base: Checkpoint, tuned: Checkpoint) -> None:
    """Refuses two checkpoints whose configs describe different computations.

    Raises:
        CheckpointError: EXTRACT_CONFIG_DIFFERS, naming the settings.
    """
    ours, theirs = base.geometry.to_dict(), tuned.geometry.to_dict()
    differing = [f"{name} ({ours[name]} / {theirs[name]})" for name in ours if ours[name] != theirs[name]]
    names = (base.config.keys() | tuned.config.keys()) - _IN_GEOMETRY - _WITHOUT_EFFECT
    for name in sorted(names):
        left, right = base.config.get(name), tuned.config.get(name)
        if left != right:
            differing.append(f"{name} ({_short(left)} / {_short(right)})")
    if differing:
        raise CheckpointError(
            "EXTRACT_CONFIG_DIFFERS",
            f"{tuned.path}/config.json",
            expected="the base model's settings",
            got=name_some(differing),
            remedy="if only the saving tool rewrote the file, copy the base's config.json over it",
        )


def differing_experts(base: Checkpoint, tuned: Checkpoint, progress: Progress) -> dict[int, tuple[int, ...]]:
    """Layer to the experts whose bytes differ, both ascending. Compares every byte of both checkpoints.

    Raises:
        CheckpointError: EXTRACT_OTHERS_DIFFER when a tensor that is no routed expert differs, is missing
            or is added; FILE_* codes of reading.
    """
    experts = base.expert_names()
    missing = [f"{describe_tensor(name)} is missing" for name in sorted(base.tensors.keys() - tuned.tensors.keys())]
    added = [f"{describe_tensor(name)} is added" for name in sorted(tuned.tensors.keys() - base.tensors.keys())]
    _refuse(tuned, missing + added)
    total = sum(tensor.nbytes for tensor in base.tensors.values())
    done = 0
    others: list[str] = []
    found: dict[int, set[int]] = {}
    for name, tensor in sorted(base.tensors.items(), key=lambda item: (str(item[1].source.path), item[1].offset)):
        if not same_bytes(tensor, tuned.tensors[name]):
            if name in experts:
                found.setdefault(experts[name].layer, set()).add(experts[name].expert)
            else:
                others.append(describe_tensor(name))
        done += tensor.nbytes
        progress("compare", done, total)
    _refuse(tuned, others)
    return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}


def same_bytes(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two stored tensors agree in dtype, shape and every byte; stops at the first difference."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return all(a == b for a, b in zip(left.chunks(), right.chunks(), strict=True))


def _refuse(tuned: Checkpoint, differing: list[str]) -> None:
    if differing:
        raise CheckpointError(
            "EXTRACT_OTHERS_DIFFER",
            str(tuned.path),
            expected="differences in routed experts only",
            got=f"{len(differing)} other tensors: {name_some(differing, 10)}",
            remedy="train with everything but the routed experts frozen",
        )


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
