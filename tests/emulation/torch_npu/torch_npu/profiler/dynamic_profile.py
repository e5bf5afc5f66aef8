"""Profiling from outside, for engines that are told to allow it."""


def step() -> None:
    """Raises RuntimeError."""
    raise RuntimeError("torch_npu.profiler.dynamic_profile is not emulated")
