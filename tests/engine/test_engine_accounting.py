"""Memory set aside for adapters comes off the KV cache that vLLM sizes by itself."""

from __future__ import annotations

import re

import pytest
from fixtures.plain_vllm import run_batch
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import weave_engine

pytestmark = pytest.mark.engine

GIB = 1 << 30
ROUNDING = 32 << 20  # vLLM says sizes in hundredths of a GiB


def test_the_kv_cache_is_smaller_by_the_memory_set_aside(
    families: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Against what the same worker would have given it: from one start to the next machine and worker differ."""
    family: TinyFamily = families("qwen3_moe")  # type: ignore[operator]
    monkeypatch.setattr("fixtures.weave_engine.ENVIRONMENT", {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"})
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)

    def withheld(weave: dict[str, object]) -> float:
        with weave_engine(family.base, max_loras=2, weave=weave, gpu_memory_utilization=0.2) as llm:
            from vllm import SamplingParams

            assert run_batch(llm, ["hello"], SamplingParams(max_tokens=2, logprobs=0))[0][0].tokens
            cache = llm.llm_engine.vllm_config.cache_config
            config = llm.llm_engine.model_config.hf_config
            token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
        (found,) = re.findall(r"Auto set \(([\d.]+)/", capfd.readouterr().out)
        return float(found) * GIB - cache.num_gpu_blocks * cache.block_size * token

    assert abs(withheld({})) <= ROUNDING
    assert abs(withheld({"adapter_memory": "1GiB"}) - GIB) <= ROUNDING
