"""What a call allocates for tensors, as torch's own profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def tensor_allocations(action: Callable[[], object]) -> list[int]:
    """Bytes by operator of the tensors that one call allocates, in the order of the operators.

    Releases are not among them. What an operator allocates is counted where it calls another operator for it, as nearly
    all do, temporary or not; past that only what is left of it when the operator ends is seen.
    """
    action()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    sizes = [event.self_cpu_memory_usage for event in seen.events() or []]
    return [size for size in sizes if size > 0]
