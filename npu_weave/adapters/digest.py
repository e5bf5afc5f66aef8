"""Content digests of adapters: equal weights give equal digests, however they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3

from npu_weave.adapters.geometry import dtype_name
from npu_weave.adapters.progress import Progress, silent
from npu_weave.adapters.shard import StoredTensor
from npu_weave.adapters.tensor_names import PROJECTIONS, TensorKey
from npu_weave.turns import pieces

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class AdapterDigests:
    """blake3 digests, 64 hex digits each.

    Attributes:
        adapter: over which experts are tuned and all their bytes.
        experts: by (layer, expert), over dtype, shapes and bytes; says nothing of layer or expert id, so
            equal experts have equal digests.
    """

    adapter: str
    experts: Mapping[tuple[int, int], str]


class AdapterHasher:
    """Builds `AdapterDigests` from experts as they come, ascending by layer and expert."""

    def __init__(self) -> None:
        self._whole = blake3(b"npu-weave adapter 1\n")
        self._experts: dict[tuple[int, int], str] = {}

    def add(
        self, layer: int, expert: int, tensors: Iterable[tuple[torch.dtype, tuple[int, ...], Iterable[Buffer]]]
    ) -> str:
        """Take in one expert: dtype, shape and bytes of each of PROJECTIONS, in that order. Returns its digest."""
        one = blake3(b"npu-weave expert 1\n")
        for projection, (dtype, shape, chunks) in zip(PROJECTIONS, tensors, strict=True):
            sizes = ",".join(str(size) for size in shape)
            one.update(f"{projection} {dtype_name(dtype)} [{sizes}]\n".encode())
            for chunk in chunks:
                one.update(chunk)
        digest: str = one.hexdigest()
        self._experts[layer, expert] = digest
        self._whole.update(f"{layer} {expert} {digest}\n".encode())
        return digest

    def add_loaded(self, layer: int, expert: int, tensors: Iterable[torch.Tensor]) -> str:
        """As `add`, for contiguous tensors in memory."""
        return self.add(
            layer,
            expert,
            ((tensor.dtype, tuple(tensor.shape), pieces(_bytes_of(tensor))) for tensor in tensors),
        )

    def digests(self) -> AdapterDigests:
        """Of all experts so far."""
        return AdapterDigests(self._whole.hexdigest(), dict(self._experts))


def digest_tensors(tensors: Mapping[TensorKey, StoredTensor], progress: Progress = silent) -> AdapterDigests:
    """Reads every byte once. Does not depend on sharding, file order, or spelling of names.

    Raises:
        AdapterFileError: FILE_CHANGED, FILE_TRUNCATED or FILE_UNREADABLE.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0

    def counted(chunks: Iterable[Buffer]) -> Iterable[Buffer]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            progress("digest", done, total)

    hasher = AdapterHasher()
    for layer, expert in sorted({(key.layer, key.expert) for key in tensors}):
        stored = [tensors[TensorKey(layer, expert, projection)] for projection in PROJECTIONS]
        hasher.add(layer, expert, ((each.dtype, each.shape, counted(each.chunks())) for each in stored))
    return hasher.digests()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).reshape(-1).numpy()
    return memoryview(array)
