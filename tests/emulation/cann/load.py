"""Puts the emulated CANN under torch_npu, in this process and in those it starts.

from emulation.cann import load
load.torch_npu()  # builds if need be, loads the libraries, imports torch_npu on top of them
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from types import ModuleType

from emulation.cann.build import build

# libascendcl first: the others take their symbols from it.
RUNTIME = ("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
OPERATORS = "opapi"


def runtime() -> ctypes.CDLL:
    """Loads the emulated runtime and returns libascendcl. Later look-ups of these libraries by name find them."""
    folder = build()
    loaded = [ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL) for name in RUNTIME]
    return loaded[0]


def torch_npu() -> ModuleType:
    """Loads the emulated runtime and operators, and imports torch_npu. Not after torch_npu was imported otherwise."""
    if "torch_npu" in sys.modules:
        return sys.modules["torch_npu"]
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    runtime()
    importlib.import_module("torch")
    ctypes.CDLL(str(build() / f"lib{OPERATORS}.so"), mode=ctypes.RTLD_GLOBAL)
    with contextlib.redirect_stdout(sys.stderr):  # it says there that it found no CANN
        return importlib.import_module("torch_npu")
