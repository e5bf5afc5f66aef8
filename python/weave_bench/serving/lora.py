"""vLLM's own LoRA on MoE experts: whether it runs on this machine at all."""

from __future__ import annotations

from pathlib import Path

import httpx
from rich.console import Console

from weave_bench.serving.systems import Spec, engines
from weave_lab.demo.servers import BASE

_TITLE = "vLLM's own LoRA on MoE experts"
_OPTIONS = ("--enable-lora", "--max-loras", "5", "--max-lora-rank", "16")


def try_lora(base: Path, threads: int, kv_bytes: int, logs: Path, console: Console) -> str:
    """Start plain vLLM on the checkpoint `base` with LoRA, and ask the base model once; says why it is not measured."""
    spec = Spec("vLLM's own LoRA", base, None, threads, kv_bytes, extra=_OPTIONS)
    try:
        with engines([spec], logs, console) as found:
            failure = _ask(found[spec.name].url)
            log = logs / f"{spec.log_name}"
            if failure:
                return f"{_TITLE} starts here and fails at the first request: {named_error(log.read_text()) or failure}"
            return f"{_TITLE} runs here and is not measured: no LoRA adapters of as many tuned experts are made"
    except RuntimeError as error:
        return f"{_TITLE} does not start here: {named_error(str(error)) or 'its log names no error'}"


def named_error(log: str) -> str:
    """The first line of a log that names an exception, without what the logger put before it; empty without one."""
    for line in log.splitlines():
        found = line.rpartition("] ")[2].strip()
        name = found.partition(": ")[0]
        if name.isidentifier() and name.endswith("Error") and found != name:
            return found[:300]
    return ""


def _ask(url: str) -> str:
    """Why one request was not answered; empty when it was."""
    body = {"model": BASE, "prompt": "hello", "max_tokens": 4}
    try:
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return "" if answer.status_code == 200 else f"status {answer.status_code}: {answer.text[:200]}"
