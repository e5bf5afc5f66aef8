"""The host-side tiling of csrc/ascendc, compiled with g++ as it is: `tile_reroute(...)`, `tile_gating_reroute(...)`."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

ASCENDC = Path(__file__).resolve().parents[2] / "csrc" / "ascendc"
TABLE_IN_UB, ROW_BY_ROW = 0, 1
LOGITS = {"float32": 0, "bfloat16": 1, "float16": 2}
# C names for the two functions, and the size of each struct to hold the mirrors below against.
SHIM = r"""
#include "gating_reroute/op_host/gating_reroute_tiling.h"
#include "reroute/op_host/reroute_tiling.h"
using namespace weave::ascendc;
extern "C" const char* c_tile_reroute(const RerouteShape* shape, std::int64_t cores, RerouteTiling* tiling) {
  return tile_reroute(*shape, cores, tiling);
}
extern "C" const char* c_tile_gating(const GatingShape* shape, std::int64_t cores, GatingTiling* tiling) {
  return tile_gating_reroute(*shape, cores, tiling);
}
extern "C" std::int64_t c_size(int which) {
  const std::int64_t sizes[] = {sizeof(RerouteShape), sizeof(RerouteTiling), sizeof(GatingShape), sizeof(GatingTiling)};
  return sizes[which];
}
"""


class RefusedTilingError(ValueError):
    """The kernel does not do this; the text is the host's."""


class RerouteShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "top_k", "map_rows", "experts")),
        ("wide_ids", ctypes.c_bool),
    )


class RerouteTiling(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in (
            "key", "wide_ids", "tokens", "top_k", "map_rows", "experts", "cores", "tile_rows", "row_pitch", "ub_bytes",
        )
    )  # fmt: skip


class GatingShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "experts", "top_k", "map_rows", "n_group", "topk_group")),
        ("logits_type", ctypes.c_uint32),
        *((name, ctypes.c_bool) for name in ("sigmoid", "biased", "renormalize")),
        ("scale", ctypes.c_float),
    )


class GatingTiling(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_float if name == "scale" else ctypes.c_uint32)
        for name in (
            "key", "logits_type", "sigmoid", "biased", "renormalize", "scale", "tokens", "top_k", "experts",
            "map_rows", "groups", "topk_group", "group_size", "group_pitch", "row_pitch", "cores", "tile_rows",
            "ub_bytes",
        )
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    sources = [ASCENDC / name / "op_host" / f"{name}_tiling.cpp" for name in ("reroute", "gating_reroute")]
    with tempfile.TemporaryDirectory() as folder:
        shim, built = Path(folder) / "shim.cpp", Path(folder) / "tiling.so"
        shim.write_text(SHIM)
        command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{ASCENDC}"]
        subprocess.run([*command, "-o", built, shim, *sources], check=True)
        loaded = ctypes.CDLL(str(built))
    loaded.c_size.restype = ctypes.c_int64
    for function in (loaded.c_tile_reroute, loaded.c_tile_gating):
        function.restype = ctypes.c_char_p
        function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    for number, mirror in enumerate((RerouteShape, RerouteTiling, GatingShape, GatingTiling)):
        assert loaded.c_size(number) == ctypes.sizeof(mirror), mirror.__name__
    return loaded


def tile_reroute(
    tokens: int, top_k: int, map_rows: int, experts: int, *, wide_ids: bool = False, cores: int = 40
) -> RerouteTiling:
    """Raises RefusedTilingError."""
    shape, tiling = RerouteShape(tokens, top_k, map_rows, experts, wide_ids), RerouteTiling()
    why = library().c_tile_reroute(ctypes.byref(shape), cores, ctypes.byref(tiling))
    if why is not None:
        raise RefusedTilingError(why.decode())
    return tiling


def tile_gating_reroute(
    tokens: int,
    experts: int,
    top_k: int,
    map_rows: int,
    *,
    n_group: int = 1,
    topk_group: int = 1,
    logits: str = "float32",
    scoring: str = "softmax",
    biased: bool = False,
    renormalize: bool = True,
    scale: float = 1.0,
    cores: int = 40,
) -> GatingTiling:
    """Raises RefusedTilingError."""
    shape = GatingShape(
        tokens, experts, top_k, map_rows, n_group, topk_group, LOGITS[logits], scoring == "sigmoid", biased,
        renormalize, scale,
    )  # fmt: skip
    tiling = GatingTiling()
    why = library().c_tile_gating(ctypes.byref(shape), cores, ctypes.byref(tiling))
    if why is not None:
        raise RefusedTilingError(why.decode())
    return tiling
