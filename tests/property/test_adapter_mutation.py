"""Damaged files give a WeaveError or an adapter that the safetensors library reads alike, never anything else."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fixtures.adapters import CONFIGS, write_adapter
from fixtures.examples import examples
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from npu_weave.adapters import MoEGeometry, open_adapter
from npu_weave.adapters.shard import read_shard
from npu_weave.errors import WeaveError

EXPERTS = {1: [3], 2: [4]}
GEOMETRY = MoEGeometry.from_config(CONFIGS["deepseek_v2"])

edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 2**20), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 2**20), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.integers(0, 2**20), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("truncate"), st.integers(0, 2**20), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[str, int, Any]], within: int | None = None) -> bytes:
    """`data` after the edits; positions are taken modulo its length, or modulo `within`."""
    out = bytearray(data)
    for what, where, value in changes:
        at = where % max(1, min(len(out), within or len(out)))
        if what == "set" and out:
            out[at] = value
        elif what == "flip" and out:
            out[at] ^= 1 << value
        elif what == "cut":
            del out[at : at + value]
        elif what == "insert":
            out[at:at] = value
        elif what == "truncate":
            del out[at:]
    return bytes(out)


@contextmanager
def damaged(name: str, damage: Callable[[bytes], bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        directory = write_adapter(Path(temporary) / "a", EXPERTS, index=name.endswith("index.json"))
        path = directory / name
        path.write_bytes(damage(path.read_bytes()))
        yield directory


def opens_or_refuses(directory: Path) -> None:
    """Only a WeaveError may come out; what opens must be read in full, and as the library reads it."""
    try:
        adapter = open_adapter(directory, GEOMETRY)
    except WeaveError as error:
        event(error.code)
        assert error.code and str(error).encode()
        return
    event("opened")
    with safe_open(directory / "model.safetensors", "pt") as library:
        for layer, ids in adapter.experts.items():
            for expert in ids:
                for projection, tensor in adapter.expert(layer, expert)._asdict().items():
                    name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
                    bits = tensor.view(torch.int16)
                    assert torch.equal(bits, library.get_tensor(name).view(torch.int16))
    assert len(adapter.digest) == 64


@settings(max_examples=examples(300))
@given(changes=edits)
def test_shards_damaged_in_the_header(changes: list[tuple[str, int, Any]]) -> None:
    def damage(data: bytes) -> bytes:
        return edited(data, changes, within=8 + int.from_bytes(data[:8], "little"))

    with damaged("model.safetensors", damage) as directory:
        opens_or_refuses(directory)


@settings(max_examples=examples(100))
@given(changes=edits)
def test_shards_damaged_anywhere(changes: list[tuple[str, int, Any]]) -> None:
    with damaged("model.safetensors", lambda data: edited(data, changes)) as directory:
        opens_or_refuses(directory)


@settings(max_examples=examples(150))
@given(name=st.sampled_from(["expert_cfg.json", "model.safetensors.index.json"]), changes=edits)
def test_json_files_damaged(name: str, changes: list[tuple[str, int, Any]]) -> None:
    with damaged(name, lambda data: edited(data, changes)) as directory:
        opens_or_refuses(directory)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(["experts", "shared_experts", "non_expert_modules", "npu_weave", "other"])


@settings(max_examples=examples(150))
@given(
    config=st.dictionaries(fields, json_values | st.dictionaries(st.sampled_from("0123"), json_values)) | json_values
)
def test_any_json_as_config(config: object) -> None:
    with damaged("expert_cfg.json", lambda _: json.dumps(config).encode()) as directory:
        opens_or_refuses(directory)


@st.composite
def nearly_valid_headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A valid header with at most one field changed, and the number of data bytes, right or a few off."""
    sizes = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1, "BOOL": 1, "I64": 8}
    header: dict[str, Any] = draw(st.sampled_from([{}, {"__metadata__": {"format": "pt"}}]))
    header = dict(header)
    end = 0
    for name in draw(st.lists(st.text(max_size=6), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(sizes))), draw(st.lists(st.integers(0, 3), max_size=3))
        nbytes = math.prod(shape) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    if header and draw(st.booleans()):
        entry = header[draw(st.sampled_from(sorted(header)))]
        entry[draw(st.sampled_from(sorted(entry)))] = draw(
            st.sampled_from(["BF16", "F64", "F4", [0], [0, 2], [2, 4], [1, 2, 3], []]) | json_values
        )
    return header, max(0, end + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 8])))


@settings(max_examples=examples(400))
@given(drawn=nearly_valid_headers())
def test_a_header_we_accept_is_one_the_library_accepts(drawn: tuple[dict[str, Any], int]) -> None:
    header, nbytes = drawn
    encoded = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.safetensors"
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(value % 256 for value in range(nbytes)))
        try:
            ours = read_shard(path)
        except WeaveError as error:
            event(error.code)
            assert error.code and str(error).encode()
            return
        event("accepted")
        with safe_open(path, "pt") as library:
            assert set(library.keys()) == set(ours)
            for name, tensor in ours.items():
                theirs = library.get_tensor(name)
                assert (tensor.load().dtype, tensor.shape) == (theirs.dtype, tuple(theirs.shape))
                if tensor.nbytes:
                    mine = tensor.load().reshape(-1).view(torch.uint8)
                    assert torch.equal(mine, theirs.reshape(-1).view(torch.uint8))
