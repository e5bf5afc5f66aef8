"""A full model checkpoint on disk, and the fingerprint by which an adapter recognises its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from npu_weave.adapters.geometry import MoEGeometry, dtype_name, read_model_config
from npu_weave.adapters.json_file import read_json_object
from npu_weave.adapters.layout import INDEX_NAME
from npu_weave.adapters.printable import name_some
from npu_weave.adapters.shard import StoredTensor, read_shard
from npu_weave.adapters.tensor_names import PROJECTIONS, TensorKey, is_fused_experts
from npu_weave.errors import AdapterFileError, CheckpointError, UnsupportedError


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a Hugging Face model directory, headers only.

    Attributes:
        path: the directory.
        config: config.json.
        geometry: of its routed experts.
        tensors: by full name.
        shards: names of the safetensors files that hold them.
    """

    path: Path
    config: Mapping[str, Any]
    geometry: MoEGeometry
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]

    def expert_names(self) -> dict[str, TensorKey]:
        """Name of every routed expert's tensor, and what it is."""
        geometry = self.geometry
        return {
            geometry.tensor_name(layer, expert, projection): TensorKey(layer, expert, projection)
            for layer in geometry.moe_layers
            for expert in range(geometry.num_experts)
            for projection in PROJECTIONS
        }


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Reads config and tensor headers of the checkpoint at `path`; no weights.

    Raises:
        UnsupportedError: see `MoEGeometry.from_config`.
        CheckpointError: CHECKPOINT_NOT_FOUND, CHECKPOINT_CONFIG_INVALID, CHECKPOINT_TENSOR_MISSING,
            CHECKPOINT_TENSOR_DUPLICATE, CHECKPOINT_INDEX_INVALID, or a JSON_* or FILE_* code.
    """
    directory = Path(path)
    config = read_model_config(directory)
    geometry = MoEGeometry.from_config(config)
    weight_map = _weight_map(directory)
    shards = tuple(sorted(set(weight_map.values()))) if weight_map else _shards_without_index(directory)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read_shard(directory / shard).items():
            if name in tensors:
                where = f"{tensors[name].source.path.name} and {shard}"
                raise CheckpointError("CHECKPOINT_TENSOR_DUPLICATE", name, expected="each tensor once", got=where)
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise _missing(directory, missing)
    return Checkpoint(directory, config, geometry, tensors, shards)


def check_experts(checkpoint: Checkpoint) -> None:
    """Checks that the checkpoint holds every routed expert, one tensor a projection, as its config says.

    Raises:
        UnsupportedError: CHECKPOINT_FUSED_EXPERTS.
        CheckpointError: CHECKPOINT_TENSOR_MISSING, CHECKPOINT_TENSOR_SHAPE, CHECKPOINT_TENSOR_DTYPE.
    """
    fused = sorted(name for name in checkpoint.tensors if is_fused_experts(name))
    if fused:
        raise UnsupportedError(
            "CHECKPOINT_FUSED_EXPERTS",
            f"{checkpoint.path}: {name_some(fused)}",
            expected=f"one tensor an expert, as {checkpoint.geometry.tensor_name(0, 0, 'gate')}",
            got="the experts of a layer fused into one tensor",
            remedy="save the model with transformers' save_pretrained(..., save_original_format=True)",
        )
    names = checkpoint.expert_names()
    missing = sorted(names.keys() - checkpoint.tensors.keys())
    if missing:
        raise _missing(checkpoint.path, missing)
    for name, key in names.items():
        tensor, shape = checkpoint.tensors[name], checkpoint.geometry.shape(key.projection)
        if tensor.shape != shape:
            raise CheckpointError("CHECKPOINT_TENSOR_SHAPE", name, expected=str(shape), got=str(tensor.shape))
        if tensor.dtype != checkpoint.geometry.dtype:
            raise CheckpointError(
                "CHECKPOINT_TENSOR_DTYPE",
                f"{checkpoint.path}: {name}",
                expected=f"{dtype_name(checkpoint.geometry.dtype)}, as config.json says",
                got=dtype_name(tensor.dtype),
                remedy=(
                    "save the checkpoint in the dtype it is served in"
                    if tensor.dtype.is_floating_point
                    else "use the checkpoint as it was before it was quantised"
                ),
            )


def base_fingerprint(base: Checkpoint | str | Path) -> str:
    """blake3 over the geometry and all router weights of a base model, as 64 hex digits.

    Adapters leave the router alone, so a base, its tuned checkpoints and its merges share the fingerprint,
    and other models do not. Only the routers' bytes are read. Independent of sharding and of `dtype` in the
    config, so an engine that serves in another dtype computes the same.

    Raises:
        CheckpointError: CHECKPOINT_TENSOR_MISSING, or as `open_checkpoint`.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    geometry = checkpoint.geometry.to_dict()
    del geometry["dtype"]
    digest = blake3(b"npu-weave base 1\n" + json.dumps(geometry, sort_keys=True).encode())
    for layer in checkpoint.geometry.moe_layers:
        weight, bias = checkpoint.geometry.router_names(layer)
        if weight not in checkpoint.tensors:
            raise _missing(checkpoint.path, [weight])
        for name in (weight, bias):
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                continue
            digest.update(f"\n{name} {dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
            for chunk in tensor.chunks():
                digest.update(chunk)
    return digest.hexdigest()


def _weight_map(directory: Path) -> dict[str, str]:
    if not (directory / INDEX_NAME).exists():
        return {}
    weight_map = read_json_object(directory / INDEX_NAME).get("weight_map")
    plain = isinstance(weight_map, dict) and all(
        isinstance(value, str) and value == Path(value).name and value for value in weight_map.values()
    )
    if not isinstance(weight_map, dict) or not plain or not weight_map:
        raise CheckpointError(
            "CHECKPOINT_INDEX_INVALID", str(directory / INDEX_NAME), expected="weight_map: tensor name to file name"
        )
    return weight_map


def _shards_without_index(directory: Path) -> tuple[str, ...]:
    if (directory / "model.safetensors").exists():
        return ("model.safetensors",)
    names = tuple(sorted(path.name for path in directory.glob("*.safetensors")))
    if not names:
        raise AdapterFileError(
            "FILE_MISSING",
            str(directory),
            expected="*.safetensors files",
            got="none",
            remedy="convert the checkpoint to safetensors",
        )
    return names


def _missing(directory: Path, names: list[str]) -> CheckpointError:
    return CheckpointError("CHECKPOINT_TENSOR_MISSING", str(directory), expected=name_some(names), got="no such tensor")
