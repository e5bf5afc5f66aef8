"""Python code on the emulated runtime in a process of its own: for what would poison the process, or needs settings."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300  # for a process that imports torch_npu on a loaded machine

RUNTIME = """\
from emulation.cann import load
from emulation.cann.acl import *
acl = Acl(load.runtime())
acl.set_device(0)
"""
TORCH = """\
torch_npu = load.torch_npu()
import torch
torch.npu.set_device(0)
"""


def start(code: str, torch: bool = False, **settings: object) -> subprocess.Popen[str]:
    """Starts `code`, which finds `acl` and all of acl.py, and `torch` and `torch_npu` if asked for.

    `settings` are the variables EMULATED_CANN_*, in lower case and without that prefix; a name in capitals is a
    variable as it is.
    """
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    for name, value in settings.items():
        environment[name if name.isupper() else f"EMULATED_CANN_{name.upper()}"] = str(value)
    program = RUNTIME + (TORCH if torch else "") + textwrap.dedent(code)
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def run(code: str, torch: bool = False, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs `code` as `start` does, to its end."""
    with start(code, torch, **settings) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines(code: str, torch: bool = False, **settings: object) -> list[str]:
    """What `code` printed; AssertionError with its stderr if it failed."""
    done = run(code, torch, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
