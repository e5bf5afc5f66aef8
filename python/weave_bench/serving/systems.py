"""Engines behind HTTP servers: plain vLLM and npu-weave, with what they take of the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from weave_bench.serving.models import Adapter
from weave_lab.demo.servers import BASE, SETTINGS, option, running

POSITIONS = 4096
"""The small model was trained on 512 tokens; its rotary positions go on. Beyond 512 it writes nonsense, as fast."""
STEP_TOKENS = 2048
"""Most tokens a step, where nothing else is said."""
_STEP_REQUESTS = 256
"""Most requests a step, where that many have a token in it."""
OPTIONS: Mapping[str, object] = {
    "dtype": "bfloat16",
    "max_model_len": POSITIONS,
    "hf_overrides": json.dumps({"max_position_embeddings": POSITIONS}),
    # as in the demonstration: vLLM compiles nothing on a CPU once adapters are enabled
    "enforce_eager": True,
    # no prompt is cheaper for having been asked before
    "no_enable_prefix_caching": True,
}
"""Settings of every engine."""


@dataclass(frozen=True)
class Spec:
    """One engine to be.

    Attributes:
        name: for people, and of its log.
        model: checkpoint.
        adapters: served with npu-weave, one slot each; None is plain vLLM, every plugin off.
        threads: of its worker, for computing.
        kv_bytes: of its KV cache.
        root: below which adapters may be loaded while it runs; None allows none.
        step_tokens: most tokens a step.
        extra: further arguments of the server.
    """

    name: str
    model: Path
    adapters: Sequence[Adapter] | None
    threads: int
    kv_bytes: int
    root: Path | None = None
    step_tokens: int = STEP_TOKENS
    extra: Sequence[str] = ()

    @property
    def log_name(self) -> str:
        """The file of its log."""
        return f"{re.sub('[^a-z0-9]+', '-', self.name.lower())}.log"

    def command(self) -> list[str]:
        """How the server is started, but for where it listens."""
        own = {
            "max_num_batched_tokens": self.step_tokens,
            "max_num_seqs": min(self.step_tokens, _STEP_REQUESTS),
            "kv_cache_memory_bytes": self.kv_bytes,
        }
        settings = {**OPTIONS, "served_model_name": BASE, **own}
        options = [part for key, value in settings.items() for part in option(key, value)]
        if self.adapters is None:
            # the server that `vllm serve` starts; the command itself does not run from every build of vLLM
            plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
            return [*plain, *options, *self.extra]
        named = [part for adapter in self.adapters for part in ("--adapter", f"{adapter.name}={adapter.path}")]
        roots = ["--adapter-root", str(self.root)] if self.root else []
        return [sys.executable, "-m", "npu_weave", "serve", str(self.model), *named, *roots, *options, *self.extra]

    def environment(self) -> dict[str, str]:
        """Of all its processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        settings = {name: value for name, value in SETTINGS.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
        plain = {"VLLM_PLUGINS": ""} if self.adapters is None else {}
        return {**kept, **settings, **plain, "OMP_NUM_THREADS": str(self.threads)}


@dataclass
class Engine:
    """A server that runs.

    Attributes:
        start_seconds: from the start of its process until it said it was healthy; None if others started beside it.
    """

    spec: Spec
    url: str
    process: subprocess.Popen[bytes]
    start_seconds: float | None
    kv_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.kv_tokens = kv_tokens(httpx.get(f"{self.url}/metrics", timeout=60).text)

    def processes(self) -> list[psutil.Process]:
        """The API server, the engine core and the worker."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def memory_bytes(self) -> int:
        """Physical memory of all its processes: the sum of their proportional set sizes, shared pages counted once."""
        return sum(int(process.memory_full_info().pss) for process in self.processes())

    def cpu_seconds(self) -> float:
        """Processor time all its processes have used."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(float(spent.user + spent.system) for spent in times)

    def target(self, adapter: Adapter | None) -> tuple[str, str]:
        """URL and model name of the base model or an adapter."""
        return self.url, BASE if adapter is None else adapter.name

    def load(self, name: str, path: Path) -> float:
        """Seconds to take an adapter into service over HTTP."""
        begun = time.perf_counter()
        answer = httpx.post(
            f"{self.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)}, timeout=300
        )
        answer.raise_for_status()
        return time.perf_counter() - begun

    def unload(self, name: str) -> None:
        """Take an adapter out of service over HTTP."""
        httpx.post(f"{self.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=300).raise_for_status()


@contextmanager
def engines(
    specs: Sequence[Spec], logs: Path, console: Console, *, beside: bool = False
) -> Iterator[dict[str, Engine]]:
    """Start engines, which stop with the body; by name.

    Args:
        specs: the engines to be.
        logs: directory of their logs, made if need be.
        console: told of every start.
        beside: start all beside each other, for a start is mostly imports, on one core. Else one after the other, so
            that each start is timed alone.

    Raises:
        RuntimeError: one did not start; the end of its log is in the message.
    """
    logs.mkdir(exist_ok=True)
    with ExitStack() as stack:

        def start(spec: Spec) -> Engine:
            begun = time.perf_counter()
            url, process = stack.enter_context(running(spec.command(), spec.environment(), logs / spec.log_name))
            taken = time.perf_counter() - begun
            console.print(f"started {spec.name} in {taken:.0f} s")
            return Engine(spec, url, process, None if beside else taken)

        with ThreadPoolExecutor(len(specs) if beside else 1) as pool:
            found = {engine.spec.name: engine for engine in pool.map(start, specs)}
        yield found


def idle_cpu(running_engines: Sequence[Engine], seconds: float = 3.0) -> float:
    """Processor seconds a second that engines take together while nobody asks anything."""
    before = sum(engine.cpu_seconds() for engine in running_engines)
    time.sleep(seconds)
    return (sum(engine.cpu_seconds() for engine in running_engines) - before) / seconds


def kv_tokens(metrics: str) -> int:
    """Tokens the KV cache holds, from vLLM's ``/metrics``: blocks times block size.

    Raises:
        ValueError: the metrics do not say.
    """
    for line in metrics.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
    raise ValueError("no vllm:cache_config_info in the server's metrics")
