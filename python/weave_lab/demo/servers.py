"""Servers as processes of their own, with their logs in files; and the one of the demonstration."""

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

ENGINE = {"dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 32, "enforce_eager": True}
"""Settings of every engine. Eager, because vLLM compiles nothing on a CPU once adapters are enabled."""

BASE = "base"
"""Name under which the base model is served."""

_START_LIMIT = 600.0
SETTINGS = {
    # the little model needs little cache; by default vLLM takes most of the machine's memory for it
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Engines share the cores. Left to itself vLLM binds the worker of each to the same core, where one that polls can
    # starve behind one that computes. One thread each: as many as the little model can use.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}
"""Environment of every engine."""


@contextmanager
def weave_server(base: Path, adapters: Mapping[str, Path], log: Path) -> Iterator[str]:
    """`npu-weave serve` with all adapters; yields its URL. The base model is served as `BASE`."""
    named = [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]
    options = [part for key, value in ENGINE.items() for part in option(key, value)]
    command = [
        sys.executable, "-m", "npu_weave", "serve", str(base), *named, "--served-model-name", BASE, *options,
    ]  # fmt: skip
    with running(command, {**os.environ, **SETTINGS}, log) as (url, _):
        yield url


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that answers while the body runs; yields its URL and its process.

    `command` is given ``--host`` and ``--port`` as well; the environment is the process's whole one.

    Raises:
        RuntimeError: the server ended, or did not start in time; the end of its log is in the message.
    """
    port = _free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            _stop(process)


def option(key: str, value: object) -> list[str]:
    """A keyword of vLLM's engine as an argument of its command line; True is a flag."""
    name = "--" + key.replace("_", "-")
    return [name] if value is True else [name, str(value)]


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    with httpx.Client(timeout=5) as client:  # one: making it takes longer than asking
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
            try:
                if client.get(f"{url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
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
