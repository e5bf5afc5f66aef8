"""The whole-engine benchmark, on a small model and a CPU: real engines, its tables, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.plain_vllm import ENGINE, ENVIRONMENT

from npu_weave.adapters.adapter import open_adapter
from weave_bench.whole_engine import comparison
from weave_bench.whole_engine.models import adapter_sets, memory_for, write_base, write_hollow_adapter
from weave_bench.whole_engine.plan import EnginePlan
from weave_bench.whole_engine.process import Measures

pytestmark = pytest.mark.engine

MODEL = {
    "model_type": "qwen3_moe", "torch_dtype": "bfloat16", "vocab_size": 256, "hidden_size": 128,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "head_dim": 32, "max_position_embeddings": 512, "num_experts": 16, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "decoder_sparse_step": 1,
}  # fmt: skip
OPTIONS = {key: ENGINE[key] for key in ENGINE if key not in ("dtype", "enable_prefix_caching", "load_format")}
PLAN = EnginePlan(MODEL, OPTIONS, (2,), prompts=(16,), batches=(3,), prompt=8, steps=4, repeats=3, rounds=1)


def test_engines_with_and_without_adapters_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (engine, capacity), left_out = comparison.compare_engines(PLAN)
    assert left_out == []
    assert [row.labels for row in engine.rows] == [
        {"adapters": 2, "step": "prefill", "size": 16},
        {"adapters": 2, "step": "decode", "size": 3},
    ]
    for row in engine.rows:
        spreads: Any = row.values
        assert spreads["base"].median > 0 and spreads["adapters"].median > 0 and spreads["ratio"].repeats == 3
    assert [row.labels["adapters"] for row in capacity.rows] == [0, 2]
    assert all(float(str(row.values["KV tokens"])) > 0 for row in capacity.rows)


def test_an_engine_that_fails_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_engine(model: Path, plan: EnginePlan, adapters: list[Path], memory: int, scratch: Path) -> Measures:
        if adapters:
            raise RuntimeError("no device for adapters")
        return Measures(1.0, 10, {16: [1.0]}, {3: [1.0]})

    monkeypatch.setattr(comparison, "measure_engine", measure_engine)
    (engine, capacity), left_out = comparison.compare_engines(PLAN)
    assert left_out == ["an engine with 2 adapters: no device for adapters"]
    assert not engine.rows and len(capacity.rows) == 1


def test_hollow_adapters_are_adapters_whose_experts_all_differ(tmp_path: Path) -> None:
    geometry = write_base(tmp_path / "base", MODEL)
    first, second = adapter_sets(geometry, 11)[::10]
    assert sorted(map(len, first.values())) == sorted(map(len, second.values())) and first != second
    opened = [
        open_adapter(write_hollow_adapter(tmp_path / name, geometry, first, seed), geometry)
        for seed, name in enumerate(("one", "other"))
    ]
    assert [each.experts == first for each in opened] == [True, True]
    files = [file for file in (tmp_path / "one").iterdir() if file.suffix == ".safetensors"]
    experts = sum(map(len, first.values()))
    assert sum(file.stat().st_size for file in files) > experts * 3 * 2 * 128 * 64
    assert (tmp_path / "one" / files[0].name).read_bytes() != (tmp_path / "other" / files[0].name).read_bytes()
    assert memory_for(geometry, [first]) >= experts * 3 * 2 * 128 * 64
