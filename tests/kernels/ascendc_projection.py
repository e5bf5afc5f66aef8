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
from typing import NamedTuple

import torch
from fixtures.gating_cases import GatingCase
from kernels.test_ascendc_kernels import case_of, launch_gating
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


def project(case: GatingCase, tokens: int) -> Projected:
    """For `tokens` tokens on all cores; `case` is one core's share."""
    share = len(case.logits)
    core = launch_gating(case, 1)[3][0]
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


def share_of(tokens: int, experts: int, top_k: int, **how: object) -> GatingCase:
    """The tokens of one core, 20 adapters."""
    return case_of(math.ceil(tokens / CORES), experts, top_k, 21, torch.bfloat16, **how)  # type: ignore[arg-type]


SHAPES: dict[str, tuple[int, int, int, dict[str, object], float | None]] = {
    "softmax, M=64, K=6": (65536, 64, 6, {}, None),
    "softmax, M=128, K=8": (65536, 128, 8, {}, 1220.0),
    "softmax, M=256, K=8": (65536, 256, 8, {}, None),
    "sigmoid, bias, groups, M=256, K=8": (
        65536, 256, 8, {"scoring": "sigmoid", "biased": True, "groups": (8, 4), "scale": 2.5}, 2067.0,
    ),
    "softmax, M=512, K=10": (16384, 512, 10, {}, 535.0),
}  # fmt: skip
"""Tokens, experts, top_k, settings; and the measured time of MoeGatingTopK at that shape, whose settings are not
recorded: that they are these is an assumption."""


def main() -> None:
    """Count, project, print."""
    table = Table(title="AscendC gating_reroute: counted under emulation; times are a PROJECTION for a 910B4")
    table.add_column("")
    for column in ("T", "instructions", "repeats", "bytes", "computing us", "copying us", "projected us"):
        table.add_column(column, justify="right")
    table.add_column("stock gating, measured us", justify="right")
    for title, (tokens, experts, top_k, how, measured) in SHAPES.items():
        found = project(share_of(tokens, experts, top_k, **how), tokens)
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
