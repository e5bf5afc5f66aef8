"""One safetensors file: its header checked in full, its tensors read on demand.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors). Opening a file reads the header only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.adapters.json_file import parse_json_object
from npu_weave.adapters.printable import printable_path
from npu_weave.adapters.source_file import SourceFile, open_source
from npu_weave.errors import AdapterFileError

MAX_HEADER_BYTES = 16 << 20
CHUNK_BYTES = 16 << 20

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ZIP_OR_PICKLE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a shard: name, dtype, shape and where its bytes lie in the file."""

    source: SourceFile
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def load(self, into: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor, in the memory of the contiguous `into` of equal shape and dtype, or in fresh memory.

        Raises:
            AdapterFileError: FILE_CHANGED, FILE_TRUNCATED or FILE_UNREADABLE.
        """
        tensor = fresh_tensor(self.shape, self.dtype) if into is None else into
        data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        self.source.read_into(memoryview(data), self.offset)
        return tensor

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytearray]:
        """The tensor's bytes in order, at most `size` bytes each."""
        for start in range(0, self.nbytes, size):
            yield self.source.read(self.offset + start, min(size, self.nbytes - start))


def read_shard(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file at `path`, by name as written in the file.

    Raises:
        AdapterFileError: FILE_IS_PICKLE, FILE_TRUNCATED, FILE_CORRUPT,
            FILE_HEADER_TOO_LARGE, or a FILE_* code of opening and reading.
    """
    source = open_source(path)
    if source.size < 8:
        raise AdapterFileError(
            "FILE_TRUNCATED", printable_path(path), expected="a safetensors file", got=f"{source.size} bytes"
        )
    start = bytes(source.read(0, min(9, source.size)))
    # A header's length may begin with the same bytes, but then its JSON follows.
    if start.startswith(_ZIP_OR_PICKLE) and start[8:] != b"{":
        raise AdapterFileError(
            "FILE_IS_PICKLE",
            printable_path(path),
            expected="a safetensors file",
            got="a pickle or zip archive, which can run code when loaded",
            remedy="save the tensors with safetensors",
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterFileError(
            "FILE_HEADER_TOO_LARGE",
            printable_path(path),
            expected=f"a header of at most {MAX_HEADER_BYTES} bytes",
            got=f"{length} bytes",
            remedy="check that this is a safetensors file",
        )
    if 8 + length > source.size:
        raise AdapterFileError(
            "FILE_TRUNCATED", printable_path(path), expected=f"a header of {length} bytes", got=f"{source.size} bytes"
        )
    try:
        header = parse_json_object(bytes(source.read(8, length)))
        tensors = _entries(source, header, 8 + length)
        end = _check_contiguous(tensors, 8 + length)
    except ValueError as reason:
        raise AdapterFileError(
            "FILE_CORRUPT", printable_path(path), expected="a valid safetensors header", got=str(reason)
        ) from reason
    if end > source.size:
        raise AdapterFileError(
            "FILE_TRUNCATED", printable_path(path), expected=f"{end} bytes", got=f"{source.size} bytes"
        )
    if end < source.size:
        raise AdapterFileError(
            "FILE_CORRUPT", printable_path(path), expected=f"{end} bytes", got=f"{source.size} bytes"
        )
    return {tensor.name: tensor for tensor in tensors}


def _entries(source: SourceFile, header: dict[str, Any], data_start: int) -> list[StoredTensor]:
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise ValueError("__metadata__ is not a map of strings")
            continue
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"entry {name!r} is malformed")
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise ValueError(f"dtype {entry['dtype']!r} of {name!r} is unknown")
        shape, offsets = _sizes(entry["shape"], name), _sizes(entry["data_offsets"], name)
        nbytes = math.prod(shape) * dtype.itemsize
        if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
            raise ValueError(f"{name!r} has offsets {offsets} but its dtype and shape take {nbytes} bytes")
        tensors.append(StoredTensor(source, name, dtype, shape, data_start + offsets[0], nbytes))
    return tensors


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    # bool is an int in Python, never in this format.
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        raise ValueError(f"shape or offsets of {name!r} are not sizes")
    return tuple(value)


def _check_contiguous(tensors: list[StoredTensor], data_start: int) -> int:
    end = data_start
    for tensor in sorted(tensors, key=lambda item: (item.offset, item.nbytes)):
        if tensor.offset != end:
            raise ValueError(f"{tensor.name!r} overlaps another tensor or leaves a gap")
        end += tensor.nbytes
    return end
