"""The arithmetic of memory, the paper's figures, and expert configurations without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npu_weave.errors import AdapterError, ConfigError
from npu_weave.residency.footprint_formula import need, row_shapes
from npu_weave.residency.footprint_source import GEOMETRIES, read_expert_sets, source_from_geometry
from npu_weave.residency.footprint_synthetic import PAPER_ADAPTERS, synthetic_adapters

LITE = GEOMETRIES["deepseek-v2-lite"]
PAGE = 2 << 20


def test_row_sizes_are_the_papers() -> None:
    pages = {name: out * inner * 2 / PAGE for name, (out, inner) in row_shapes(LITE).items()}
    assert pages == {"w13_weight": 5.5, "w2_weight": 2.75}


def test_fragmentation_of_the_papers_ten_adapters() -> None:
    """26 layers, 64 experts, E_max 13. The paper says 1.51; its table's rounded means give 194 / 129.13 = 1.502."""
    sets = [experts for _, experts in synthetic_adapters(LITE)]
    found = need(LITE, LITE.moe_layers, sets, 13, PAGE)
    means = sum(figures.mean for figures in PAPER_ADAPTERS.values())
    assert means == pytest.approx(65.13)
    assert found.fragmentation == pytest.approx(26 * (64 + 10 * 13) / (26 * 64 + 26 * means), abs=5e-4)
    assert found.fragmentation == pytest.approx(1.51, abs=0.01)


def test_synthetic_adapters_have_the_papers_statistics() -> None:
    source = source_from_geometry("deepseek-v2-lite", [])
    assert (source.origin, source.e_max, len(source.adapters)) == ("synthetic", 13, 10)
    for name, sets in source.adapters:
        counts = [len(ids) for ids in sets.values()]
        assert list(sets) == list(range(1, 27))
        assert max(counts) == PAPER_ADAPTERS[name].most
        assert sum(counts) / 26 == pytest.approx(PAPER_ADAPTERS[name].mean, abs=0.006)
        assert min(counts) >= 1
        assert all(list(ids) == sorted(set(ids)) and ids[0] >= 0 and ids[-1] < 64 for ids in sets.values())
    assert source == source_from_geometry("deepseek-v2-lite", [])


def test_whole_pages_waste_little_at_this_size() -> None:
    source = source_from_geometry("deepseek-v2-lite", [])
    sets = [experts for _, experts in source.adapters]
    for loaded in range(len(sets) + 1):
        found = need(LITE, LITE.moe_layers, sets[:loaded], source.e_max, PAGE)
        assert 1 <= found.paged_bytes / found.exact_bytes < 1.02


def test_expert_configurations_in_the_esft_layout(tmp_path: Path) -> None:
    for name, experts in (("one", {"1": [5, 3], "26": [0]}), ("two", {"2": [1, 2, 63], "3": []})):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"experts": experts, "shared_experts": False, "non_expert_modules": False})
        )
    source = source_from_geometry("deepseek-v2-lite", [tmp_path / "one.json", tmp_path / "two.json"])
    assert source.adapters == (("one", {1: (3, 5), 26: (0,)}), ("two", {2: (1, 2, 63)}))
    assert (source.origin, source.e_max) == ("expert configurations", 3)


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda: {"experts": {"1": ["x"]}}, "EXPERT_CONFIG_INVALID"),
        (lambda: {"experts": {"one": [1]}}, "EXPERT_CONFIG_INVALID"),
        (lambda: {"layers": {}}, "EXPERT_CONFIG_INVALID"),
        (lambda: {"experts": {"0": [1]}}, "ADAPTER_LAYER_INVALID"),
        (lambda: {"experts": {"27": [1]}}, "ADAPTER_LAYER_INVALID"),
        (lambda: {"experts": {"1": [64]}}, "ADAPTER_EXPERT_RANGE"),
        (lambda: {"experts": {"1": [-1]}}, "ADAPTER_EXPERT_RANGE"),
        (lambda: {"experts": {"1": [1]}, "shared_experts": True}, "ADAPTER_MODULES_UNSUPPORTED"),
        (lambda: {"experts": {"1": [2, 2]}}, "ADAPTER_EXPERT_REPEATED"),
        (lambda: [], "JSON_INVALID"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, write: Callable[[], Any], code: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(write()))
    with pytest.raises(AdapterError) as refused:
        read_expert_sets(tmp_path / "bad.json", LITE)
    assert refused.value.code == code


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="FILE_MISSING"):
        read_expert_sets(tmp_path / "none.json", LITE)


def test_an_unknown_geometry() -> None:
    with pytest.raises(ConfigError, match=r"FOOTPRINT_ARGUMENT.*deepseek-v2-lite.*got gpt-9"):
        source_from_geometry("gpt-9", [])
