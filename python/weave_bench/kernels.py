"""The part ``kernels``: gating and rerouting, fused and in parts, beside what memory and launches cost.

For every backend that this machine has, every number of tokens and of experts: the fused operator; the framework's own
gating followed by the rerouting operator; the same followed by framework operators in its place (the paper's SingleOp).
All are measured in turn; a ratio is the median of ratios within one turn, with the lowest and highest quarter. The
floor is the bytes that must be moved over the bandwidth that a large copy reaches here; at few tokens the data lie in
caches and the launch of one empty call is what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)
from weave_bench.results import Part, Row, Spread, Table, ratios, spread

TOKENS = (1, 16, 256, 1024, 4096, 16384, 65536)
QUICK_TOKENS = (1, 32, 1024)
EXPERTS = (64, 128, 256)
TOP_K = 8
SLOTS = 21
TURN_SECONDS = 0.1
"""All turns of one way together take about this long, or a call each."""

COLUMNS = {
    "fused": "microseconds a call",
    "floor": "microseconds: the bytes that must be moved at a large copy's speed, or an empty call if that is more",
    "/ softmax + top-k": "time over torch's softmax and top-k alone",
    "/ gating + reroute": "time over torch's gating and then our rerouting operator",
    "/ separate ops": "time over torch's gating and then rerouting in torch operators (the paper's SingleOp)",
    "separate / reroute": "rerouting in torch operators over our rerouting operator, gating left out",
}


@dataclass(frozen=True)
class Step:
    """The inputs of one MoE layer in one step: bfloat16 logits, mixed slots."""

    logits: torch.Tensor
    token_slots: torch.Tensor
    expert_map: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that must be read and written once: logits, slots, weights, rows."""
        return self.logits.nbytes + 4 * len(self.logits) + 8 * TOP_K * len(self.logits)


def make_step(tokens: int, experts: int, device: torch.device) -> Step:
    """Random inputs, every adapter with the same share of the tokens."""
    generator = torch.Generator().manual_seed(tokens + experts)
    return Step(
        torch.randn(tokens, experts, generator=generator).to(torch.bfloat16).to(device),
        torch.randint(0, SLOTS, (tokens,), generator=generator, dtype=torch.int32).to(device),
        torch.randint(0, 20 * experts, (SLOTS, experts), generator=generator, dtype=torch.int32).to(device),
    )


def gating(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The framework's own: softmax and top-k, nothing more."""
    weights, ids = step.logits.softmax(dim=-1, dtype=torch.float32).topk(TOP_K, dim=-1)
    return weights, ids


def renormalized(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """`gating`, with what routers do besides: weights that add up to one, int32 ids."""
    weights, ids = gating(step)
    return weights / weights.sum(dim=-1, keepdim=True), ids.int()


def separate(step: Step, ids: torch.Tensor) -> torch.Tensor:
    """Rerouting with framework operators: where in the flattened map, then what is there."""
    at = step.token_slots.long()[:, None] * step.expert_map.shape[1] + ids
    return step.expert_map.view(-1)[at]


def fused(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """All of it in one operator."""
    weights, rows = torch.ops.npu_weave.gating_reroute.default(
        step.logits, None, TOP_K, "softmax", True, 1, 1, 1.0, step.token_slots, step.expert_map
    )
    return weights, rows


def rerouting(step: Step, ids: torch.Tensor) -> torch.Tensor:
    """The rerouting operator."""
    rows: torch.Tensor = torch.ops.npu_weave.reroute.default(ids, step.token_slots, step.expert_map)
    return rows


def ways(step: Step) -> dict[str, Callable[[], object]]:
    """What is measured against each other."""
    ids = renormalized(step)[1]

    def in_parts(last: Callable[[Step, torch.Tensor], torch.Tensor]) -> object:
        weights, found = renormalized(step)
        return weights, last(step, found)

    return {
        "fused": lambda: fused(step),
        "gating + reroute": lambda: in_parts(rerouting),
        "gating + separate ops": lambda: in_parts(separate),
        "softmax + top-k alone": lambda: gating(step),
        "reroute alone": lambda: rerouting(step, ids),
        "separate ops alone": lambda: separate(step, ids),
    }


def microseconds(action: Callable[[], object], device: torch.device, count: int) -> float:
    """A call, on average over `count`."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            action()
        return (time.perf_counter() - start) / count * 1e6
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(count):
        action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / count * 1e3


def measure_ways(actions: dict[str, Callable[[], object]], device: torch.device, turns: int) -> dict[str, list[float]]:
    """Microseconds of every way in every turn."""
    counts = {}
    for name, action in actions.items():
        microseconds(action, device, 1)  # compiles, and touches its memory
        counts[name] = max(1, int(TURN_SECONDS * 1e6 / turns / max(microseconds(action, device, 1), 1)))
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(turns):
        for name, action in actions.items():
            times[name].append(microseconds(action, device, counts[name]))
    return times


def bandwidth(device: torch.device) -> float:
    """Bytes a microsecond that a copy of 256 MiB moves, read and written."""
    source = torch.ones(256 << 20, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    best = min(microseconds(lambda: sink.copy_(source), device, 1) for _ in range(5))
    return 2 * source.nbytes / best


def launch(device: torch.device) -> float:
    """Microseconds of a call that has nothing to do."""
    step = make_step(0, 64, device)
    return statistics.median(microseconds(lambda: fused(step), device, 100) for _ in range(5))


def measured_on(device: torch.device, tokens: Sequence[int], experts: Sequence[int], turns: int) -> list[Row]:
    """One backend: a row for each number of tokens and experts."""
    moved, empty = bandwidth(device), launch(device)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    rows = []
    for count, width in tqdm([(t, m) for m in experts for t in tokens], desc=name, leave=False, disable=None):
        step = make_step(count, width, device)
        times = measure_ways(ways(step), device, turns)
        values: dict[str, Spread | float | None] = {
            "fused": spread(times["fused"]),
            "floor": max(step.nbytes / moved, empty),
            "/ softmax + top-k": ratios(times["fused"], times["softmax + top-k alone"]),
            "/ gating + reroute": ratios(times["fused"], times["gating + reroute"]),
            "/ separate ops": ratios(times["fused"], times["gating + separate ops"]),
            "separate / reroute": ratios(times["separate ops alone"], times["reroute alone"]),
        }
        rows.append(Row({"device": name, "experts": width, "tokens": count}, values))
    return rows


def measure(*, quick: bool) -> Part:
    """Every backend of this machine; a CPU with one thread."""
    begun = time.monotonic()
    torch.set_num_threads(1)
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    tokens, experts, turns = (QUICK_TOKENS, EXPERTS[:1], 5) if quick else (TOKENS, EXPERTS, 15)
    table = Table(
        "kernels",
        "Gating and rerouting in one operator",
        COLUMNS,
        [row for device in devices for row in measured_on(device, tokens, experts, turns)],
        "The fused operator beside what it replaces. At few tokens the data lie in caches and a call's own cost "
        "counts; the floor is what memory and an empty call would take, not what the arithmetic does.",
    )
    settings = {"top-k": TOP_K, "adapters": SLOTS - 1, "logits": "bfloat16", "CPU threads": 1, "turns": turns}
    left_out = [] if len(devices) > 1 else ["the CUDA kernels: there is no GPU here"]
    return Part("kernels", time.monotonic() - begun, quick, settings, [table], left_out)
