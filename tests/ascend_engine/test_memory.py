"""What vllm-ascend's memory profiling makes of ours: it sizes the KV cache by what is left.

On an emulated runtime, where free memory is the device's limit less what drivers and tensors took.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_models import TinyFamily
from fixtures.weave_ascend import NEWEST_RELEASE, weave_ascend_engine

pytestmark = pytest.mark.ascend_engine

MIB = 1 << 20
SET_ASIDE = 512 * MIB
NOISE = 96 * MIB  # of the emulated device, whose tensors are the process's memory


def cache_bytes(base: Path, additional: dict[str, Any]) -> int:
    """Bytes of the KV cache that the engine gives itself."""
    settings = {"num_gpu_blocks_override": None, "enable_lora": bool(additional), "additional_config": additional}
    with weave_ascend_engine(base, **settings) as llm:
        config = llm.llm_engine.model_config.hf_config
        cache = llm.llm_engine.vllm_config.cache_config
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        return int(cache.num_gpu_blocks) * cache.block_size * token


@pytest.mark.skipif(not NEWEST_RELEASE, reason="three engines, and both releases measure alike: in the newest only")
def test_the_base_is_counted_once_and_memory_set_aside_comes_off_the_cache(
    families: Callable[..., TinyFamily],
) -> None:
    base = families("qwen3_moe", 0).base
    stock = cache_bytes(base, {})
    woven = cache_bytes(base, {"npu_weave": {}})
    assert abs(stock - woven) <= NOISE, f"{stock / MIB:.0f} and {woven / MIB:.0f} MiB"
    withheld = stock - cache_bytes(base, {"npu_weave": {"adapter_memory": SET_ASIDE}})
    assert abs(withheld - SET_ASIDE) <= NOISE, f"{withheld / MIB:.0f} MiB"
