"""The digest is the content's: not the sharding's, the names' or the order's; and every bit counts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from fixtures.adapters import CONFIGS, EXPERTS, adapter_tensors, expert_key, moe_layers, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from npu_weave.adapters import Adapter, MoEGeometry, open_adapter

expert_sets = st.dictionaries(
    st.sampled_from(list(moe_layers("deepseek_v2"))),
    st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True),
    min_size=1,
)
GEOMETRY = MoEGeometry.from_config(CONFIGS["deepseek_v2"])


def write(directory: Path, experts: dict[int, list[int]], tensors: dict[str, torch.Tensor], shards: int) -> Adapter:
    return open_adapter(write_adapter(directory, experts, tensors=tensors, shards=shards), GEOMETRY)


@settings(max_examples=40)
@given(experts=expert_sets, shards=st.integers(1, 4), legacy=st.sets(st.integers(0, 29)), data=st.data())
def test_the_form_does_not_matter(
    experts: dict[int, list[int]], shards: int, legacy: set[int], data: st.DataObject
) -> None:
    tensors = adapter_tensors("deepseek_v2", experts)
    renamed = {
        key.removeprefix("model.") if number in legacy else key: tensor
        for number, (key, tensor) in enumerate(tensors.items())
    }
    shuffled = {layer: data.draw(st.permutations(ids)) for layer, ids in reversed(experts.items())}
    with tempfile.TemporaryDirectory() as temporary:
        first = write(Path(temporary) / "a", experts, tensors, 1)
        second = write(Path(temporary) / "b", shuffled, renamed, shards)
        assert first.digest == second.digest
        assert first.digests == second.digests
        assert first.experts == second.experts


@settings(max_examples=40)
@given(experts=expert_sets, data=st.data())
def test_every_bit_matters(experts: dict[int, list[int]], data: st.DataObject) -> None:
    tensors = adapter_tensors("deepseek_v2", experts)
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    layer = data.draw(st.sampled_from(sorted(experts)))
    expert = data.draw(st.sampled_from(experts[layer]))
    key = expert_key("deepseek_v2", layer, expert, data.draw(st.sampled_from(["gate", "up", "down"])))
    flat = changed[key].view(torch.uint8).view(-1)
    flat[data.draw(st.integers(0, flat.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as temporary:
        first = write(Path(temporary) / "a", experts, tensors, 1)
        second = write(Path(temporary) / "b", experts, changed, 1)
        assert first.digest != second.digest
        pairs = first.digests.experts.keys()
        assert {pair for pair in pairs if first.expert_digest(*pair) != second.expert_digest(*pair)} == {
            (layer, expert)
        }


@settings(max_examples=20)
@given(layer=st.sampled_from(list(moe_layers("deepseek_v2"))), pair=st.permutations(range(EXPERTS)))
def test_where_an_expert_goes_matters(layer: int, pair: list[int]) -> None:
    """The same weights for another expert id are another adapter, though the expert's own digest is equal."""
    with tempfile.TemporaryDirectory() as temporary:
        first = write(Path(temporary) / "a", {layer: pair[:1]}, adapter_tensors("deepseek_v2", {layer: pair[:1]}), 1)
        second = write(Path(temporary) / "b", {layer: pair[1:2]}, adapter_tensors("deepseek_v2", {layer: pair[1:2]}), 1)
        assert first.digest != second.digest
        assert first.expert_digest(layer, pair[0]) == second.expert_digest(layer, pair[1])
