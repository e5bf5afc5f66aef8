"""An adapter directory as files: its config, its shards, and that the two agree.

Everything here can be known without the base model and from the files' headers alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npu_weave.adapters.expert_config import ExpertConfig, read_expert_config
from npu_weave.adapters.json_file import read_json_object
from npu_weave.adapters.printable import name_some, printable, printable_path
from npu_weave.adapters.shard import StoredTensor, read_shard
from npu_weave.adapters.tensor_names import PROJECTIONS, TensorKey, describe_tensor, parse_expert_name
from npu_weave.errors import AdapterError, AdapterFileError

INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class AdapterLayout:
    """A directory whose tensors are exactly the experts its config declares.

    Attributes:
        path: real path of the directory.
        config: `expert_cfg.json`.
        tensors: every projection of every declared expert.
        shards: the safetensors files, by name.
    """

    path: Path
    config: ExpertConfig
    tensors: Mapping[TensorKey, StoredTensor]
    shards: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_layout(path: Path) -> AdapterLayout:
    """Reads the adapter directory at the real path `path`; no tensor data is read.

    Raises:
        AdapterError: the codes of `read_expert_config`, `read_shard`, and FILE_IS_PICKLE, FILE_OUTSIDE,
            FILE_MISSING, ADAPTER_INDEX_INVALID, ADAPTER_TENSOR_DUPLICATE, ADAPTER_TENSOR_UNEXPECTED,
            ADAPTER_TENSOR_MISSING.
    """
    names = _list(path)
    _check_no_pickle(path, names)
    for name in names:
        _check_inside(path, name)
    config = read_expert_config(path)
    shards = {name: read_shard(path / name) for name in names if name.lower().endswith(".safetensors")}
    if INDEX_NAME in names:
        _check_index(path, shards)
    if not shards:
        raise AdapterFileError(
            "FILE_MISSING", printable_path(path), expected="at least one *.safetensors file", got="none"
        )
    tensors = _collect(shards)
    _check_coverage(path, config, tensors)
    return AdapterLayout(path, config, tensors, tuple(shards))


def _list(path: Path) -> list[str]:
    """Names in the directory that could hold weights or describe them, sorted."""
    try:
        names = sorted(os.listdir(path))
    except OSError as reason:
        raise AdapterFileError(
            "FILE_UNREADABLE", printable_path(path), expected="a readable directory", got=str(reason)
        ) from reason
    return [name for name in names if name.lower().endswith((".safetensors", ".json", *PICKLE_SUFFIXES))]


def _check_no_pickle(path: Path, names: list[str]) -> None:
    pickles = [name for name in names if name.lower().endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise AdapterFileError(
            "FILE_IS_PICKLE",
            printable_path(path / pickles[0]),
            expected="safetensors files only",
            got=name_some([printable(name) for name in pickles]),
            remedy="pickles can run code when loaded: convert the weights to safetensors and remove these files",
        )


def _check_inside(path: Path, name: str) -> None:
    try:
        real = (path / name).resolve(strict=False)
    except (OSError, RuntimeError) as reason:
        raise AdapterFileError(
            "FILE_UNREADABLE", printable_path(path / name), expected="a file", got=str(reason)
        ) from reason
    if not real.is_relative_to(path):
        raise AdapterFileError(
            "FILE_OUTSIDE",
            printable_path(path / name),
            expected="a file inside the adapter's directory",
            got="a symbolic link that leaves it",
            remedy="copy the file into the directory",
        )


def _check_index(path: Path, shards: Mapping[str, Mapping[str, StoredTensor]]) -> None:
    where = printable_path(path / INDEX_NAME)
    weight_map: Any = read_json_object(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise AdapterError("ADAPTER_INDEX_INVALID", where, expected="weight_map: tensor name to file", got="none")
    for name in sorted(set(weight_map.values())):
        if name not in shards:
            raise AdapterFileError(
                "FILE_MISSING", printable_path(path / name), expected=f"a shard named in {INDEX_NAME}"
            )
    found = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    differing = [name for name in sorted(weight_map.keys() | found.keys()) if weight_map.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise AdapterError(
            "ADAPTER_INDEX_INVALID",
            f"{where}: {printable(name)}",
            expected=f"in {found.get(name, 'no file')}, where it is",
            got=f"in {printable(weight_map.get(name, 'no file'))}",
            remedy="the index is optional: correct or remove it",
        )


def _collect(shards: Mapping[str, Mapping[str, StoredTensor]]) -> dict[TensorKey, StoredTensor]:
    tensors: dict[TensorKey, StoredTensor] = {}
    foreign: list[str] = []
    for shard in shards.values():
        for name, tensor in shard.items():
            parsed = parse_expert_name(name)
            if parsed is None:
                foreign.append(describe_tensor(name))
                continue
            key, _ = parsed
            if key in tensors:
                other = tensors[key]
                raise AdapterError(
                    "ADAPTER_TENSOR_DUPLICATE",
                    name,
                    expected="each tensor once",
                    got=f"{other.name} in {other.source.path.name} and {name} in {tensor.source.path.name}",
                )
            tensors[key] = tensor
    if foreign:
        raise AdapterError(
            "ADAPTER_TENSOR_UNEXPECTED",
            name_some(sorted(foreign)),
            expected="projections of routed experts only",
            got=f"{len(foreign)} other tensors",
            remedy="make the adapter with `npu-weave adapter extract`",
        )
    return tensors


def _check_coverage(path: Path, config: ExpertConfig, tensors: Mapping[TensorKey, StoredTensor]) -> None:
    declared = {
        TensorKey(layer, expert, projection)
        for layer, experts in config.expert_sets().items()
        for expert in experts
        for projection in PROJECTIONS
    }
    missing = sorted(declared - tensors.keys())
    if missing:
        raise AdapterError(
            "ADAPTER_TENSOR_MISSING",
            printable_path(path),
            expected="gate, up and down projection of every declared expert",
            got="no " + name_some([f"layer {key.layer} expert {key.expert} {key.projection}" for key in missing]),
        )
    extra = sorted(tensors.keys() - declared)
    if extra:
        raise AdapterError(
            "ADAPTER_TENSOR_UNEXPECTED",
            name_some([tensors[key].name for key in extra]),
            expected="tensors of the experts that expert_cfg.json declares",
            got="experts it does not declare",
        )
