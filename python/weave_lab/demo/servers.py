"""Servers of the demonstration, each a process of its own with its log in a file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "32", "--enforce-eager")
"""Options of every server. Eager, because vLLM compiles nothing on a CPU once adapters are enabled."""

BASE = "base"
"""Name under which `weave_server` serves the base model."""

PLAIN = "model"
"""Name under which `plain_server` serves its model."""

_START_LIMIT = 600.0
_SETTINGS = {
    # the little model needs little cache; by default vLLM takes most of the machine's memory for it
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Several servers share the cores. Left to itself vLLM binds the worker of each to the same core, where one that
    # polls can starve behind one that computes. One thread each: as many as the little model can use.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}


@contextmanager
def weave_server(base: Path, adapters: Mapping[str, Path], log: Path) -> Iterator[str]:
    """`npu-weave serve` with all adapters; yields its URL. The base model is served as `BASE`."""
    named = [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]
    command = ["-m", "npu_weave", "serve", str(base), *named, "--served-model-name", BASE]
    with _server(command, log, {}) as url:
        yield url


@contextmanager
def plain_server(model: Path, log: Path) -> Iterator[str]:
    """Plain vLLM, with every plugin off; yields its URL. The model is served as `PLAIN`."""
    command = [
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        "--model",
        str(model),
        "--served-model-name",
        PLAIN,
    ]
    with _server(command, log, {"VLLM_PLUGINS": ""}) as url:
        yield url


@contextmanager
def _server(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    port = _free_port()
    settings = {**_SETTINGS, **environment}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, *OPTIONS, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start within {_START_LIMIT:.0f} s; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
