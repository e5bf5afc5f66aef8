"""An adapter that fits its base model: the handle the rest of npu-weave works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from npu_weave.adapters.digest import AdapterDigests, digest_tensors
from npu_weave.adapters.geometry import MoEGeometry, dtype_name
from npu_weave.adapters.layout import AdapterLayout, read_layout
from npu_weave.adapters.paths import resolve_adapter_path
from npu_weave.adapters.printable import name_some
from npu_weave.adapters.progress import Progress, silent
from npu_weave.adapters.shard import StoredTensor
from npu_weave.adapters.tensor_names import PROJECTIONS, Projection, TensorKey, parse_expert_name
from npu_weave.errors import AdapterError


class ExpertTensors(NamedTuple):
    """One expert's weights: `gate` and `up` are `[I, H]`, `down` is `[H, I]`."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """A valid ESFT adapter of one base model. Immutable, holds no open file, safe to share between threads.

    Attributes:
        layout: the files.
        geometry: of the base model it was checked against.
    """

    layout: AdapterLayout
    geometry: MoEGeometry

    @property
    def path(self) -> Path:
        """Real path of the adapter's directory."""
        return self.layout.path

    @cached_property
    def experts(self) -> dict[int, tuple[int, ...]]:
        """Model layer index to the ids of its tuned experts, both ascending."""
        return self.layout.config.expert_sets()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.layout.nbytes

    @cached_property
    def digests(self) -> AdapterDigests:
        """Content digests; the first use reads every byte once. Raises FILE_* errors as `expert`."""
        return digest_tensors(self.layout.tensors)

    @property
    def digest(self) -> str:
        """blake3 over the set of experts and every byte of them, as 64 hex digits; see `digests`."""
        return self.digests.adapter

    def expert_digest(self, layer: int, expert: int) -> str:
        """blake3 of one expert's content, as 64 hex digits; see `digests`."""
        self._tensor(layer, expert, "gate")
        return self.digests.experts[layer, expert]

    def expert(self, layer: int, expert: int, into: ExpertTensors | None = None) -> ExpertTensors:
        """Reads one expert, in the geometry's dtype, into CPU memory.

        Args:
            into: another expert of this base model that is needed no longer: its memory is used again. None takes
                fresh memory.

        Raises:
            AdapterError: ADAPTER_EXPERT_UNKNOWN: the adapter does not tune it; FILE_CHANGED: a file is not
                the one that was validated; FILE_MISSING, FILE_TRUNCATED, FILE_UNREADABLE.
        """
        stored = {projection: self._tensor(layer, expert, projection) for projection in PROJECTIONS}
        # in the order of the file, which the system reads ahead in
        loaded = {
            each: stored[each].load(None if into is None else getattr(into, each))
            for each in sorted(stored, key=lambda each: stored[each].offset)
        }
        return ExpertTensors(**loaded)

    def _tensor(self, layer: int, expert: int, projection: Projection) -> StoredTensor:
        tensor = self.layout.tensors.get(TensorKey(layer, expert, projection))
        if tensor is None:
            raise AdapterError(
                "ADAPTER_EXPERT_UNKNOWN",
                str(self.path),
                expected="an expert it tunes",
                got=f"layer {layer} expert {expert}",
            )
        return tensor


def open_adapter(
    path: str | Path,
    geometry: MoEGeometry,
    *,
    allowed_roots: Sequence[Path] | None = None,
    base_fingerprint: str | None = None,
) -> Adapter:
    """Opens and validates the adapter at `path`; reads headers, no weights.

    Args:
        path: the adapter's directory.
        geometry: of the base model.
        allowed_roots: directories the adapter must lie under; None allows every directory.
        base_fingerprint: of the base model (`checkpoint.base_fingerprint`); compared when the adapter notes one.

    Raises:
        AdapterPathError, AdapterNotFoundError: see `resolve_adapter_path`.
        AdapterError: see `read_layout` and `check_geometry`.
    """
    layout = read_layout(resolve_adapter_path(path, allowed_roots))
    check_geometry(layout, geometry, base_fingerprint)
    return Adapter(layout, geometry)


def check_geometry(layout: AdapterLayout, geometry: MoEGeometry, base_fingerprint: str | None = None) -> None:
    """Checks that the adapter fits the base model.

    Raises:
        AdapterError: ADAPTER_BASE_MISMATCH, ADAPTER_LAYER_INVALID, ADAPTER_EXPERT_RANGE,
            ADAPTER_TENSOR_UNEXPECTED, ADAPTER_TENSOR_SHAPE, ADAPTER_TENSOR_DTYPE.
    """
    noted = layout.config.npu_weave.base_fingerprint
    if noted is not None and base_fingerprint is not None and noted != base_fingerprint:
        raise AdapterError(
            "ADAPTER_BASE_MISMATCH",
            str(layout.path),
            expected=f"an adapter of the base model {base_fingerprint[:16]}",
            got=f"an adapter of another base model, {noted[:16]}",
            remedy="serve it on the base model it was extracted from",
        )
    for layer, experts in layout.config.expert_sets().items():
        if layer not in geometry.moe_layers:
            raise AdapterError(
                "ADAPTER_LAYER_INVALID",
                f"{layout.path} layer {layer}",
                expected=f"a layer with routed experts ({_ranges(geometry.moe_layers)})",
                got="no such layer" if layer >= geometry.num_layers else "a dense layer",
            )
        if experts[-1] >= geometry.num_experts:
            raise AdapterError(
                "ADAPTER_EXPERT_RANGE",
                f"{layout.path} layer {layer}",
                expected=f"ids below {geometry.num_experts}",
                got=str(experts[-1]),
            )
    _check_names(layout, geometry)
    for key, tensor in layout.tensors.items():
        if tensor.shape != geometry.shape(key.projection):
            raise AdapterError(
                "ADAPTER_TENSOR_SHAPE",
                tensor.name,
                expected=str(list(geometry.shape(key.projection))),
                got=str(list(tensor.shape)),
                remedy="this adapter belongs to a base model of another size",
            )
        if tensor.dtype != geometry.dtype:
            raise AdapterError(
                "ADAPTER_TENSOR_DTYPE",
                tensor.name,
                expected=dtype_name(geometry.dtype),
                got=dtype_name(tensor.dtype),
                remedy="convert the adapter to the base model's dtype, or serve the base in the adapter's",
            )


def check_finite(adapter: Adapter, progress: Progress = silent) -> None:
    """Reads every tensor and refuses NaN and infinity. Raises AdapterError ADAPTER_TENSOR_NOT_FINITE."""
    done = 0
    for key in sorted(adapter.layout.tensors):
        tensor = adapter.layout.tensors[key]
        if not bool(torch.isfinite(tensor.load()).all()):
            raise AdapterError(
                "ADAPTER_TENSOR_NOT_FINITE", tensor.name, expected="finite weights", got="NaN or infinity"
            )
        done += tensor.nbytes
        progress("check finite", done, adapter.nbytes)


def _check_names(layout: AdapterLayout, geometry: MoEGeometry) -> None:
    foreign = []
    for tensor in layout.tensors.values():
        parsed = parse_expert_name(tensor.name)
        if parsed is None or parsed[1] not in geometry.accepted_spellings:
            foreign.append(tensor.name)
    if foreign:
        raise AdapterError(
            "ADAPTER_TENSOR_UNEXPECTED",
            name_some(sorted(foreign)),
            expected=f"names as in {geometry.tensor_name(geometry.moe_layers[0], 0, 'gate')}",
            got=f"names of another model type than {geometry.model_type}",
        )


def _ranges(layers: tuple[int, ...]) -> str:
    """E.g. `1-26` or `0, 2, 4`."""
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return name_some([str(layer) for layer in layers], 40)
