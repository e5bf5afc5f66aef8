"""vllm-ascend as it is, without npu-weave, answers on the emulated torch_npu as transformers does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.ascend_engine import ENGINE, in_own_process, served, transformers_answers
from fixtures.tiny_models import TinyFamily

# The last is longer than what is prefilled in one step, and comes to it while others decode.
PROMPTS = ("hello world", "foo bar", "the quick brown fox", "0123456789" * 8)
COUNT = 8

# Routing of 0.23.0, and of later releases.
ROUTING = {"npu_moe_init_routing_custom", "npu_moe_init_routing_v2"}
REACHED = {
    "qwen3_moe": {"npu_fused_infer_attention_score", "_npu_rotary_embedding"},
    # the last two: latent keys of the chunks before are fetched, and attention over the parts is merged
    "deepseek_v2": {"npu_fused_infer_attention_score_v2", "npu_kv_rmsnorm_rope_cache", "npu_attention_update"},
}
EXPERTS = {"moe_gating_top_k", "npu_grouped_matmul", "npu_swiglu", "npu_moe_token_unpermute"}


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v2"])
def test_equals_transformers(kind: str, families: Callable[..., TinyFamily]) -> None:
    base = families(kind, 0).base
    expected = transformers_answers(base, PROMPTS, COUNT)
    assert max(len(answer.prompt) for answer in expected) > 2 * ENGINE["max_num_batched_tokens"], "no chunks"
    assert len({answer.tokens for answer in expected}) == len(PROMPTS), "a model that answers everything alike"
    found = in_own_process(served, base, PROMPTS, COUNT)
    assert not found.ours, "not the stock engine"
    for ours, theirs in zip(found.answers, expected, strict=True):
        assert ours.prompt == theirs.prompt
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)
    assert set(found.calls) >= REACHED[kind] | EXPERTS
    assert len(set(found.calls) & ROUTING) == 1
