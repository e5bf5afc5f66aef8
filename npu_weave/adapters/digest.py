"""Content digests of adapters: equal weights give equal digests, however they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blake3 import blake3

from npu_weave.adapters.geometry import dtype_name
from npu_weave.adapters.progress import Progress, silent
from npu_weave.adapters.shard import StoredTensor
from npu_weave.adapters.tensor_names import PROJECTIONS, TensorKey


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


def digest_tensors(tensors: Mapping[TensorKey, StoredTensor], progress: Progress = silent) -> AdapterDigests:
    """Reads every byte once. Does not depend on sharding, file order, or spelling of names.

    Raises:
        AdapterFileError: FILE_CHANGED, FILE_TRUNCATED or FILE_UNREADABLE.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0
    whole = blake3(b"npu-weave adapter 1\n")
    experts: dict[tuple[int, int], str] = {}
    for layer, expert in sorted({(key.layer, key.expert) for key in tensors}):
        one = blake3(b"npu-weave expert 1\n")
        for projection in PROJECTIONS:
            tensor = tensors[TensorKey(layer, expert, projection)]
            shape = ",".join(str(size) for size in tensor.shape)
            one.update(f"{projection} {dtype_name(tensor.dtype)} [{shape}]\n".encode())
            for chunk in tensor.chunks():
                one.update(chunk)
                done += len(chunk)
                progress("digest", done, total)
        experts[layer, expert] = one.hexdigest()
        whole.update(f"{layer} {expert} {experts[layer, expert]}\n".encode())
    return AdapterDigests(whole.hexdigest(), experts)
