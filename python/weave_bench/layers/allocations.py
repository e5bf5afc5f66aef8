"""What a call allocates for tensors, as torch's own profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def tensor_allocations(action: Callable[[], object]) -> list[int]:
    """Bytes of each allocation for a tensor during one call, in their order; releases are not among them."""
    action()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    sizes = [event.self_cpu_memory_usage for event in seen.events() or [] if event.name == "[memory]"]
    return [size for size in sizes if size > 0]
