"""Builds the emulated CANN against the torch_npu that is installed: `python tests/emulation/cann/build.py`.

Prints the folder of the libraries. Does nothing when neither the sources nor torch and torch_npu have changed since.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
BUILD = SOURCES.parents[2] / "build" / "emulated_cann"
LIBRARIES = BUILD / "lib"
LOCK = BUILD / "lock"
STAMP = BUILD / "built_from"


class BuildError(RuntimeError):
    """The emulated CANN cannot be built here, and why."""


def package_folder(name: str) -> Path:
    """Where the package `name` is installed; it is not imported, which torch_npu without a CANN would not bear."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise BuildError(
            f"{name} is not installed for {sys.executable}; scripts/test_ascend.sh makes an environment that has it"
        )
    return Path(found.submodule_search_locations[0])


def digest() -> str:
    """Of all that the libraries are made from."""
    made_from = hashlib.sha256()
    for name in ("torch", "torch_npu"):
        made_from.update(f"{package_folder(name)} {importlib.metadata.version(name)}\n".encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".cpp", ".h", ".txt"} or path.name in {"stubs.py", "build.py"}:
            made_from.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return made_from.hexdigest()


def compile_libraries() -> None:
    """Runs cmake; raises BuildError with the end of its output."""
    torch, torch_npu = package_folder("torch"), package_folder("torch_npu")
    includes = [torch / "include", torch / "include" / "torch" / "csrc" / "api" / "include"]
    libraries = [torch / "lib" / "libtorch_cpu.so", torch / "lib" / "libc10.so"]
    configure = [
        *("cmake", "-S", SOURCES, "-B", BUILD),
        f"-DPYTHON={sys.executable}",
        f"-DTORCH_NPU={torch_npu}",
        "-DTORCH_INCLUDES=" + ";".join(map(str, includes)),
        "-DTORCH_LIBRARIES=" + ";".join(map(str, libraries)),
    ]
    for command in (configure, ["cmake", "--build", BUILD, "--parallel", str(os.cpu_count() or 1)]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{done.stdout[-4000:]}\nbuilding the emulated CANN failed")


def build() -> Path:
    """The folder with the libraries, built first if need be; one process at a time."""
    wanted = digest()
    BUILD.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.exists() or STAMP.read_text() != wanted:
            STAMP.unlink(missing_ok=True)
            compile_libraries()
            STAMP.write_text(wanted)
    return LIBRARIES


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
