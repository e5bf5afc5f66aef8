"""What an adapter contains, in numbers; needs no base model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npu_weave.adapters.digest import digest_tensors
from npu_weave.adapters.geometry import dtype_name
from npu_weave.adapters.layout import read_layout
from npu_weave.adapters.paths import resolve_adapter_path
from npu_weave.adapters.progress import Progress, silent


@dataclass(frozen=True)
class AdapterSummary:
    """An adapter in numbers.

    Attributes:
        path: real path of the directory.
        experts: model layer index to tuned experts, layers without any included.
        total: tuned experts over all layers.
        largest: most tuned experts in one layer (E).
        sparsity: mean over the layers of the config of `(E - experts in layer) / E`, as in the ExpertWeave paper.
        shapes: projection to the shapes found, one unless the adapter is malformed.
        dtypes: the dtypes found.
        nbytes: bytes of all tensors.
        shards: names of the safetensors files.
        base_fingerprint: of the base model, if noted.
        digest: blake3 of the content.
    """

    path: str
    experts: dict[int, tuple[int, ...]]
    total: int
    largest: int
    sparsity: float
    shapes: dict[str, list[tuple[int, ...]]]
    dtypes: list[str]
    nbytes: int
    shards: tuple[str, ...]
    base_fingerprint: str | None
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def summarize(path: str | Path, progress: Progress = silent) -> AdapterSummary:
    """Reads the whole adapter at `path`, for its digest.

    Raises:
        AdapterError: as `read_layout` and `digest_tensors`.
    """
    layout = read_layout(resolve_adapter_path(path, None))
    experts = {int(layer): tuple(sorted(ids)) for layer, ids in layout.config.experts.items()}
    counts = [len(ids) for ids in experts.values()]
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for key, tensor in layout.tensors.items():
        shapes.setdefault(key.projection, set()).add(tensor.shape)
    return AdapterSummary(
        path=str(layout.path),
        experts=dict(sorted(experts.items())),
        total=sum(counts),
        largest=max(counts),
        sparsity=1 - sum(counts) / (len(counts) * max(counts)),
        shapes={projection: sorted(found) for projection, found in sorted(shapes.items())},
        dtypes=sorted({dtype_name(tensor.dtype) for tensor in layout.tensors.values()}),
        nbytes=layout.nbytes,
        shards=layout.shards,
        base_fingerprint=layout.config.npu_weave.base_fingerprint,
        digest=digest_tensors(layout.tensors, progress).adapter,
    )
