"""Makes an adapter from a base checkpoint and a tuned one."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from npu_weave.adapters.adapter import Adapter, open_adapter
from npu_weave.adapters.checkpoint import Checkpoint, base_fingerprint, check_experts, open_checkpoint
from npu_weave.adapters.differences import check_same_config, differing_experts
from npu_weave.adapters.expert_config import EXPERT_CONFIG_NAME, ExpertConfig, WeaveMetadata
from npu_weave.adapters.layout import INDEX_NAME
from npu_weave.adapters.output import staged_directory
from npu_weave.adapters.progress import Progress, silent
from npu_weave.adapters.tensor_names import PROJECTIONS
from npu_weave.errors import CheckpointError

MAX_SHARD_BYTES = 1 << 30


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    progress: Progress = silent,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Adapter:
    """Writes to `out` an adapter of the routed experts in which `tuned` differs from `base`, bit by bit.

    Holds at most about `max_shard_bytes` of weights in memory. `out` appears complete or not at all.

    Raises:
        UnsupportedError: CHECKPOINT_FUSED_EXPERTS, or as `open_checkpoint`.
        CheckpointError: EXTRACT_CONFIG_DIFFERS, EXTRACT_OTHERS_DIFFER, EXTRACT_NO_DIFFERENCE, or as
            `open_checkpoint` and `check_experts`.
        OutputError: as `staged_directory`.
    """
    ours, theirs = open_checkpoint(base), open_checkpoint(tuned)
    check_experts(ours)
    check_experts(theirs)
    check_same_config(ours, theirs)
    with staged_directory(Path(out)) as staging:
        experts = differing_experts(ours, theirs, progress)
        if not experts:
            raise CheckpointError(
                "EXTRACT_NO_DIFFERENCE",
                str(tuned),
                expected="at least one routed expert that differs from the base",
                got="the same weights",
            )
        fingerprint = base_fingerprint(ours)
        _write_shards(theirs, experts, staging, progress, max_shard_bytes)
        config = ExpertConfig(
            experts={str(layer): list(ids) for layer, ids in experts.items()},
            npu_weave=WeaveMetadata(base_fingerprint=fingerprint),
        )
        _write_json(staging / EXPERT_CONFIG_NAME, config.to_json())
        open_adapter(staging, ours.geometry, base_fingerprint=fingerprint)
    return open_adapter(out, ours.geometry, base_fingerprint=fingerprint)


def _write_shards(
    tuned: Checkpoint, experts: dict[int, tuple[int, ...]], out: Path, progress: Progress, max_shard_bytes: int
) -> None:
    geometry = tuned.geometry
    pairs = [(layer, expert) for layer, ids in experts.items() for expert in ids]
    per_shard = max(1, max_shard_bytes // geometry.expert_nbytes)
    groups = [pairs[start : start + per_shard] for start in range(0, len(pairs), per_shard)]
    weight_map: dict[str, str] = {}
    done, total = 0, len(pairs) * geometry.expert_nbytes
    for number, group in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        names = [geometry.tensor_name(*pair, projection) for pair in group for projection in PROJECTIONS]
        save_file({name: tuned.tensors[name].load() for name in names}, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
        done += len(group) * geometry.expert_nbytes
        progress("write", done, total)
    if len(groups) > 1:
        _write_json(out / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
