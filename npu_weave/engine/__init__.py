"""Engines: the only rooms that import vLLM or vllm-ascend."""
