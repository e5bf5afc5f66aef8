"""Makes a full checkpoint from a base checkpoint and an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

from npu_weave.adapters.adapter import Adapter, open_adapter
from npu_weave.adapters.checkpoint import Checkpoint, base_fingerprint, check_experts, open_checkpoint
from npu_weave.adapters.layout import PICKLE_SUFFIXES
from npu_weave.adapters.output import staged_directory
from npu_weave.adapters.progress import Progress, silent
from npu_weave.adapters.shard import CHUNK_BYTES, StoredTensor

# Weights in any other form would be the base's, not the merged model's.
_WEIGHT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")


def merge(base: str | Path, adapter: str | Path, out: str | Path, *, progress: Progress = silent) -> Adapter:
    """Writes to `out` the base checkpoint with the adapter's experts in place of its own.

    The shards keep their names, order and metadata; config, tokenizer and other files in the base's directory
    are copied. Holds one chunk of weights in memory. `out` appears complete or not at all.
    Returns the adapter.

    Raises:
        AdapterError: as `open_adapter`.
        CheckpointError, UnsupportedError: as `open_checkpoint` and `check_experts`.
        OutputError: as `staged_directory`.
    """
    checkpoint = open_checkpoint(base)
    check_experts(checkpoint)
    opened = open_adapter(adapter, checkpoint.geometry, base_fingerprint=base_fingerprint(checkpoint))
    replaced = _replacements(checkpoint, opened)
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    done = 0
    with staged_directory(Path(out)) as staging:
        for shard in checkpoint.shards:
            path = checkpoint.path / shard
            tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.source.path == path]
            if tensors:
                done = _write_shard(staging / shard, tensors, replaced, progress, done, total)
            else:
                shutil.copyfile(path, staging / shard)
        for entry in sorted(checkpoint.path.iterdir()):
            if entry.is_file() and not entry.name.lower().endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(entry, staging / entry.name)
    return opened


def _replacements(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, StoredTensor]:
    """Name of a tensor in the base to the adapter's tensor for it."""
    names = {key: name for name, key in checkpoint.expert_names().items()}
    return {names[key]: tensor for key, tensor in adapter.layout.tensors.items()}


def _write_shard(
    path: Path,
    tensors: list[StoredTensor],
    replaced: dict[str, StoredTensor],
    progress: Progress,
    done: int,
    total: int,
) -> int:
    """Copies one shard with replaced tensors' bytes; the header stays, as dtypes and shapes are equal."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))
    with path.open("wb") as file:
        header = ordered[0].offset
        for start in range(0, header, CHUNK_BYTES):
            file.write(ordered[0].source.read(start, min(CHUNK_BYTES, header - start)))
        for tensor in ordered:
            for chunk in replaced.get(tensor.name, tensor).chunks():
                file.write(chunk)
                done += len(chunk)
                progress("merge", done, total)
    return done
