"""The part ``gpu``: routed MoE layers at full geometry on a GPU, without an engine, and whole engines where vLLM is.

Layers hold their experts in npu-weave's virtual tensors over CUDA's virtual memory, choose them by its fused operator,
and compute with Triton kernels of their own (`weave_bench.cuda`). Without a GPU nothing is measured, and the part says
what would be.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace

import torch

from npu_weave.memory import CudaDriver
from weave_bench.cuda.geometry import DEEPSEEK_V2_LITE, DEEPSEEK_V3, LayerShape
from weave_bench.cuda.limits import Limits, measure_limits
from weave_bench.cuda.plan import FULL, QUICK, Plan
from weave_bench.cuda.tables import TABLES, make_table
from weave_bench.cuda.traffic import ADAPTERS, REQUEST, make_steps, tuned_experts
from weave_bench.cuda.weights import make_experts, rows_needed
from weave_bench.results import Part, Row, Table
from weave_bench.whole_engine import plan as engine_plan
from weave_bench.whole_engine import process as engine_process
from weave_bench.whole_engine.comparison import compare_engines
from weave_bench.whole_engine.plan import EnginePlan

SHAPES = (DEEPSEEK_V2_LITE, DEEPSEEK_V3)
ROOM = 6 << 30
"""Bytes left free for hidden states, graphs and torch itself."""
SMALLEST_SHARE = 8
"""Base experts of a rank below which a layer is not worth measuring."""

ALONE = (
    "engines of merged checkpoints, and vLLM's own LoRA on MoE experts, beside it on a GPU: there is no room for two "
    "such engines on one, and nobody has LoRA adapters of equal tuned experts for this geometry"
)


def measure(*, quick: bool) -> Part:
    """Every layer that fits, or what is missing for it."""
    begun = time.monotonic()
    missing = what_is_missing()
    if missing:
        left_out = [*would_measure(missing, quick=quick), would_measure_engine(missing, quick=quick), ALONE]
        return Part("gpu", time.monotonic() - begun, quick, {"device": "none"}, [], left_out)
    return _measured(begun, quick)


def what_is_missing() -> str | None:
    """Why no layer can be measured here; None if one can."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"this torch ({torch.__version__}) is built without CUDA" if built is None else "no GPU is visible here"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed here"
    return None


def would_measure(reason: str, *, quick: bool) -> list[str]:
    """What is left out of each table because of `reason`."""
    plan = QUICK if quick else FULL
    layers = ", and of ".join(f"{shape.name} ({shape.describe()})" for shape in SHAPES)
    batches = (
        f"decode steps of {_listed(plan.decode)} tokens, launched one by one and as CUDA graphs, and prefill steps of "
        f"{_listed(plan.prefill)} tokens in requests of {REQUEST}"
    )
    pairs = f"{plan.turns} pairs in turn each, timed with CUDA events"
    return [
        f"gpu-overhead: one MoE layer of {layers}, its experts in virtual tensors on CUDA's virtual memory; {batches}; "
        f"base tokens against {_listed(plan.adapters)} adapters; time ratio beside row ratio, and the share reached "
        f"of what copying and multiplying allow; {pairs}. Reason: {reason}.",
        f"gpu-parity: in the same layers and batches virtual against padded tensors, base tokens against the base "
        f"model's experts alone, one adapter against its merged model, outputs equal in every bit; {pairs}. Reason: "
        f"{reason}.",
        f"gpu-separate: the same batches with {max(plan.adapters)} adapters, gating and rerouting in one operator "
        f"against rerouting by our own and by torch's operators after it; {pairs}. Reason: {reason}.",
    ]


def would_measure_engine(reason: str, *, quick: bool) -> str:
    """What is left out of a whole engine because of `reason`."""
    return f"gpu-engine: {_engine_plan(quick).describe()}. Reason: {reason}."


def measure_engine(*, quick: bool) -> tuple[list[Table], list[str]]:
    """Engines of the base model alone and with adapters, where vLLM is, and what was left out."""
    if not engine_process.vllm_is_here():
        reason = "vLLM is not installed here (0.26.0 pairs with torch 2.11.0 and CUDA 13)"
        return [], [would_measure_engine(reason, quick=quick)]
    try:
        return compare_engines(_engine_plan(quick))
    except RuntimeError as error:
        return [], [would_measure_engine(str(error), quick=quick)]


def _engine_plan(quick: bool) -> EnginePlan:
    return engine_plan.QUICK if quick else engine_plan.FULL


def fitted(shape: LayerShape, free: int) -> LayerShape | None:
    """The layer, shared by as many ranks as it takes for one of them to fit into `free` bytes; None if none does."""
    while shape.share >= SMALLEST_SHARE:
        if rows_needed(shape, tuned_here(shape)) * shape.row_bytes + ROOM <= free:
            return shape
        shape = replace(shape, ranks=2 * shape.ranks)
    return None


def tuned_here(shape: LayerShape) -> list[tuple[int, ...]]:
    """What each adapter tunes of the experts on this rank: the published counts of 64, or of a part of these."""
    return [tuple(expert for expert in experts if expert < shape.share) for experts in tuned_experts()]


def _measured(begun: float, quick: bool) -> Part:
    plan, device = QUICK if quick else FULL, torch.device("cuda", torch.cuda.current_device())
    limits = measure_limits(device)
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    left_out, layers = [ALONE], dict[str, object]()
    for asked in SHAPES:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        shape = fitted(asked, free)
        if shape is None:
            left_out.append(f"a layer of {asked.name}: {free >> 30} GiB are free, too few for any share of it")
            continue
        print(f"{shape.name}: {shape.describe()}")
        found, described = _layer(shape, device, plan, limits)
        layers[shape.name] = described
        for name in rows:
            rows[name] += found[name]
    settings: dict[str, object] = {
        "device": torch.cuda.get_device_name(device),
        "measured limits": limits.describe(),
        "adapters loaded": f"{ADAPTERS}, tuning as many experts as the published ones, twice",
        "steps a turn": plan.steps,
        "turns": plan.turns,
        **layers,
    }
    torch.cuda.empty_cache()
    engine_tables, refused = measure_engine(quick=quick)
    tables = [*(make_table(name, found) for name, found in rows.items()), *engine_tables]
    left_out += refused
    return Part("gpu", time.monotonic() - begun, quick, settings, tables, left_out)


def _layer(shape: LayerShape, device: torch.device, plan: Plan, limits: Limits) -> tuple[dict[str, list[Row]], str]:
    from weave_bench.cuda.cases import measure_layer  # these import triton
    from weave_bench.cuda.checks import check_step

    tuned = tuned_here(shape)
    experts = make_experts(shape, tuned, CudaDriver(device.index or 0), device)
    try:
        (step,) = make_steps(shape, tuned, tokens=16, adapters=ADAPTERS, request=1, count=1, device=device)
        error = check_step(shape, experts.virtual, step)
        described = (
            f"{shape.describe()}; {experts.mapped_rows} of {len(experts.virtual.w13)} rows have memory; "
            f"{error:.1e} off float64"
        )
        return measure_layer(shape, experts, tuned, plan, limits), described
    finally:
        experts.close()


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
