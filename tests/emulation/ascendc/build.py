"""Compiles an AscendC kernel's source, unchanged, against the emulation: `build_kernel(path)`.

Every `extern "C" __global__ __aicore__ void name(...)` of the source can then be launched. The library is kept in the
temporary folder under a name made of all it was compiled from, so an unchanged source is compiled once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

EMULATION = Path(__file__).resolve().parent
# Narrowing is an error for the device's compiler. Hidden and not unique: each library has state of its own.
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Werror=narrowing")
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+__aicore__\s+void\s+(\w+)\s*\(')


class BuildError(RuntimeError):
    """The source does not compile against the emulation; the text is the compiler's."""


def kernel_names(source: Path) -> list[str]:
    """The kernels that a source defines."""
    names = KERNEL.findall(source.read_text())
    if not names:
        raise BuildError(f'{source}: expected an extern "C" __global__ __aicore__ void function, found none')
    return names


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr)
    return done.stdout


def _digest(dependencies: str, text: str) -> str:
    """Of the launcher's text and of every file that the compiler lists after `stdin.o:`."""
    made_from = hashlib.sha256(f"{FLAGS} {text}".encode())
    for name in sorted(dependencies.replace("\\\n", " ").split()[1:]):
        if name != "-":
            made_from.update(Path(name).read_bytes())
    return made_from.hexdigest()[:24]


@functools.cache
def build_kernel(source: Path) -> ctypes.CDLL:
    """The library of all kernels in `source`, compiled if need be; raises BuildError with what the compiler says."""
    launchers = "".join(f"EMULATED_KERNEL({name})\n" for name in kernel_names(source))
    text = f'#include "{source.resolve()}"\nEMULATED_LIBRARY()\n{launchers}'
    compiler = [os.environ.get("CXX", "g++"), *FLAGS, f"-I{EMULATION}", "-x", "c++", "-"]
    digest = _digest(_run([*compiler, "-MM"], text), text)
    folder = Path(tempfile.gettempdir()) / f"npu-weave-emulation-{os.getuid()}" / digest
    library = folder / f"{source.stem}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = library.with_suffix(f".{os.getpid()}")
        _run([*compiler, "-shared", "-o", str(partial)], text)
        partial.replace(library)
    return ctypes.CDLL(str(library))
