"""``python -m kernels.ascendc_projection``: what the AscendC kernels execute a token, and a projection of their time.

A PROJECTION, not a measurement: nothing here ran on an NPU. Instructions, repeats and bytes are counted under
emulation, for one core's share of the tokens. The model: the cycles that Huawei's msopmodeling 1.0.9 lists for a repeat
of each instruction (910B1's table, which it uses for the 910B4 too), and 43.4 cycles for each instruction, the constant
with which the same model gives the time of the stock MoeGatingTopK that somebody measured at [16384, 512]. Where that
table has nothing the number is a guess: Gather 64, Brcb 8, CreateVecIndex 1. Copies are taken to be hidden behind
computing, or the other way round. The measured times are those of other people on a 910B4, in microseconds, and do not
include the lookup of the rows that the fused operator does besides (`Index`: 478 us for [57360, 8]).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from emulation.ascendc.launch import CoreCounters, reads, writes
from kernels.ascendc_tiling import tile_reroute
from kernels.test_ascendc_kernels import case_of, kernels, launch_gating, random_ints
from rich.console import Console
from rich.table import Table

CORES, MHZ, GB_PER_SECOND = 40, 1650.0, 1060.0  # a 910B4: vector cores, clock, global memory to all of them
CYCLES_AN_INSTRUCTION = 43.4
CYCLES_A_REPEAT = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Exp", "Select", "Compare", "Cast"), 2),
    **dict.fromkeys(("Adds", "Muls", "Maxs", "Mins", "Duplicate", "ShiftRight", "CreateVecIndex"), 1),
    **dict.fromkeys(("BlockReduceSum", "BlockReduceMax"), 1),
    **dict.fromkeys(("WholeReduceSum", "WholeReduceMax"), 7),
    "Div": 4,
    "Sort32": 4,
    "MrgSort": 6,
    "GatherMask": 14,
    "Gather": 64,
    "Brcb": 8,
}
NOT_COMPUTING = {"DataCopyPad", "EnQue", "DeQue", "FreeTensor", "PipeBarrier", "SetFlag", "WaitFlag", "GetValue"}


class Projected(NamedTuple):
    """One shape: what a token costs on average, and microseconds for all."""

    instructions: float
    repeats: float
    nbytes: float
    computing: float
    copying: float


def project(core: CoreCounters, share: int, tokens: int) -> Projected:
    """For `tokens` tokens on all cores, from what one core executed for its share of them."""
    counts = {api: count for api, count in core.apis.items() if api not in NOT_COMPUTING}
    instructions = sum(count[0] for count in counts.values())
    repeats = sum(count[1] for count in counts.values())
    cycles = sum(CYCLES_A_REPEAT[api] * count[1] for api, count in counts.items())
    moved = core.bytes_from_gm + core.bytes_to_gm
    return Projected(
        instructions / share,
        repeats / share,
        moved / share,
        (cycles + CYCLES_AN_INSTRUCTION * instructions) / MHZ,
        moved / share * tokens / GB_PER_SECOND / 1e3,
    )


def gating(tokens: int, experts: int, top_k: int, **how: object) -> Projected:
    """gating_reroute with 20 adapters and bfloat16 logits."""
    share = math.ceil(tokens / CORES)
    case = case_of(share, experts, top_k, 21, torch.bfloat16, **how)  # type: ignore[arg-type]
    return project(launch_gating(case, 1)[3][0], share, tokens)


def rerouting(tokens: int, experts: int, top_k: int) -> Projected:
    """reroute with 20 adapters and int32 ids."""
    share = math.ceil(tokens / CORES)
    ids, slots = random_ints(experts, share, top_k), random_ints(21, share, seed=1)
    tiling = tile_reroute(share, top_k, 21, experts, cores=1)
    out = torch.empty_like(ids)
    table = random_ints(1000, 21, experts, seed=2)
    core = kernels("reroute").launch("weave_reroute", 1, reads(ids), reads(slots), reads(table), writes(out), tiling)[0]
    return project(core, share, tokens)


V3 = {"scoring": "sigmoid", "biased": True, "groups": (8, 4), "scale": 2.5}
SHAPES: dict[str, tuple[Callable[[int], Projected], int, float | None]] = {
    "gating, softmax, M=64, K=6": (lambda tokens: gating(tokens, 64, 6), 65536, None),
    "gating, softmax, M=128, K=8": (lambda tokens: gating(tokens, 128, 8), 65536, 1220.0),
    "gating, softmax, M=256, K=8": (lambda tokens: gating(tokens, 256, 8), 65536, None),
    "gating, DeepSeek-V3's, M=256, K=8": (lambda tokens: gating(tokens, 256, 8, **V3), 65536, 2067.0),
    "gating, softmax, M=512, K=10": (lambda tokens: gating(tokens, 512, 10), 16384, 535.0),
    "rerouting alone, M=256, K=8": (lambda tokens: rerouting(tokens, 256, 8), 57360, 478.0),
}
"""What is projected, for how many tokens; and the measured time of MoeGatingTopK at that shape, for rerouting of Index.
MoeGatingTopK's settings are not recorded: that they are these is an assumption."""


def main() -> None:
    """Count, project, print."""
    table = Table(title="AscendC kernels: counted under emulation; times are a PROJECTION for a 910B4")
    table.add_column("")
    for column in ("T", "instructions", "repeats", "bytes", "computing us", "copying us", "projected us"):
        table.add_column(column, justify="right")
    table.add_column("stock, measured us", justify="right")
    for title, (projected, tokens, measured) in SHAPES.items():
        found = projected(tokens)
        table.add_row(
            title,
            str(tokens),
            f"{found.instructions:.2f}",
            f"{found.repeats:.1f}",
            f"{found.nbytes:.0f}",
            f"{found.computing:.0f}",
            f"{found.copying:.0f}",
            f"{max(found.computing, found.copying):.0f}",
            "-" if measured is None else f"{measured:.0f} ({measured / max(found.computing, found.copying):.1f} x)",
        )
    console = Console(width=150)
    console.print(table)
    console.print("instructions, repeats and bytes are a token's, on average")


if __name__ == "__main__":
    main()
