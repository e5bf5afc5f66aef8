"""How many adapter rows a model gets, and the memory its bank may take. Needs vLLM installed, starts none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm.build import build_bank, choose_adapter_rows
from npu_weave.errors import ConfigError
from npu_weave.experts.port import Routing, RowLimit

pytestmark = pytest.mark.engine

LITE_EXPERTS, LITE_LIMIT = 64, 373
"""DeepSeek-V2-Lite: experts, and rows its kernel addresses (see tests/kernels/test_cpu_moe_row_limit.py)."""


class Port:
    """A `MoELayerPort` over plain tensors."""

    def __init__(self, num_experts: int, max_rows: int | None, index: int = 0) -> None:
        self.index = index
        self.name = f"layer {index}"
        self.num_experts = num_experts
        self.row_limit = None if max_rows is None else RowLimit(max_rows, "a limit of the test")
        self._weights = {"w13": torch.randn(num_experts, 8, 4), "w2": torch.randn(num_experts, 4, 4)}

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self._weights

    def rebind(self, name: str, tensor: torch.Tensor) -> None:
        self._weights[name] = tensor

    def pack(self, experts: Sequence[ExpertTensors]) -> dict[str, torch.Tensor]:
        raise AssertionError("nothing is packed here")

    def insert_routing(self, routing: Routing) -> None:
        raise AssertionError("nothing is rerouted here")


@pytest.mark.parametrize(("slots", "rows"), [(1, 64), (4, 256), (5, 309), (20, 309)])
def test_default_is_what_could_be_used_or_the_limit(slots: int, rows: int) -> None:
    """309 adapter rows and 64 base experts are the 373 rows of the limit; 5 adapters of 64 experts would be more."""
    ports = [Port(LITE_EXPERTS, LITE_LIMIT)]
    assert choose_adapter_rows(ports, None, slots=slots) == rows


def test_without_a_limit_of_the_kernel_nothing_is_cut() -> None:
    assert choose_adapter_rows([Port(LITE_EXPERTS, None)], None, slots=20) == 1280
    assert choose_adapter_rows([Port(LITE_EXPERTS, None)], 5000, slots=20) == 5000


def test_strictest_layer_decides_for_all() -> None:
    ports = [Port(64, None, 0), Port(64, 200, 1), Port(64, 373, 2)]
    assert choose_adapter_rows(ports, None, slots=20) == 136
    assert choose_adapter_rows(ports, 136, slots=1) == 136
    with pytest.raises(ConfigError, match="1 to 136"):
        choose_adapter_rows(ports, 137, slots=1)


def test_what_is_asked_for_is_taken_up_to_the_limit() -> None:
    ports = [Port(LITE_EXPERTS, LITE_LIMIT)]
    assert [choose_adapter_rows(ports, rows, slots=2) for rows in (1, 308, 309)] == [1, 308, 309]


@pytest.mark.parametrize("rows", [310, 10_000])
def test_more_rows_than_the_kernel_addresses_are_refused(rows: int) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_adapter_rows([Port(LITE_EXPERTS, LITE_LIMIT)], rows, slots=2)
    assert (refused.value.code, refused.value.got) == ("ROWS_BEYOND_KERNEL", str(rows))
    assert "373 rows" in refused.value.expected
    assert "at most 309" in refused.value.remedy


@pytest.mark.parametrize("wanted", [None, 1])
@pytest.mark.parametrize("limit", [64, 40])
def test_no_room_beside_the_base_experts_is_refused(limit: int, wanted: int | None) -> None:
    """A limit of fewer rows than the base model has experts would make the base model itself wrong."""
    with pytest.raises(ConfigError) as refused:
        choose_adapter_rows([Port(LITE_EXPERTS, limit)], wanted, slots=2)
    assert refused.value.code == "ROWS_BEYOND_KERNEL"
    assert refused.value.got.startswith(f"{limit} rows")
    assert refused.value.remedy == "raise --tensor-parallel-size"


def test_bank_is_built_with_these_rows_and_this_memory() -> None:
    ports = [Port(6, 20, index) for index in range(2)]
    before = [{name: weight.clone() for name, weight in port.weights().items()} for port in ports]
    bank = build_bank(ports, WeaveConfig(adapter_memory="8MiB"), slots=3, device=torch.device("cpu"))
    page = bank.pool.page_bytes
    assert [layer.rows.count for layer in bank.layers.values()] == [14, 14]
    assert bank.pool.in_use == 4, "a page for each of the two weights of two layers"
    assert bank.pool.limit_pages == 4 + (8 << 20) // page
    assert bank.pool.in_use + bank.pool.idle == bank.pool.limit_pages, "taken before the engine sizes its cache"
    for port, weights in zip(ports, before, strict=True):
        for name, weight in weights.items():
            assert port.weights()[name].shape[0] == 20
            assert torch.equal(port.weights()[name][:6], weight)
    bank.check_integrity()


def test_bank_without_a_memory_limit_takes_the_base_experts_only() -> None:
    bank = build_bank([Port(6, None)], WeaveConfig(adapter_rows=4), slots=3, device=torch.device("cpu"))
    assert (bank.pool.limit_pages, bank.pool.in_use, bank.pool.idle) == (None, 2, 0)
