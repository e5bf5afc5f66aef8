"""Memory set aside for adapters comes off the KV cache that vLLM sizes by itself."""

from __future__ import annotations

import pytest
from fixtures.plain_vllm import run_batch
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import weave_engine

pytestmark = pytest.mark.engine

GIB = 1 << 30
NOISE = 128 << 20  # resident memory of a worker, from one start to the next


def test_the_kv_cache_is_smaller_by_the_memory_set_aside(families: object, monkeypatch: pytest.MonkeyPatch) -> None:
    family: TinyFamily = families("qwen3_moe")  # type: ignore[operator]
    monkeypatch.setattr("fixtures.weave_engine.ENVIRONMENT", {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"})
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)

    def cache_bytes(weave: dict[str, object]) -> int:
        with weave_engine(family.base, max_loras=2, weave=weave, gpu_memory_utilization=0.2) as llm:
            from vllm import SamplingParams

            assert run_batch(llm, ["hello"], SamplingParams(max_tokens=2, logprobs=0))[0][0].tokens
            cache = llm.llm_engine.vllm_config.cache_config
            config = llm.llm_engine.model_config.hf_config
            token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
            return int(cache.num_gpu_blocks) * cache.block_size * token

    without = cache_bytes({})
    withheld = without - cache_bytes({"adapter_memory": "1GiB"})
    assert abs(withheld - GIB) <= NOISE, f"{withheld / GIB:.2f} GiB"
