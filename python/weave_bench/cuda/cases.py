"""What is paired with what, for one layer: the ways that serve a batch, and their times in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from weave_bench.cuda import layer
from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.limits import Limits, Work, floor
from weave_bench.cuda.plan import Plan
from weave_bench.cuda.step import ExpertWeights, Step
from weave_bench.cuda.tables import TABLES, overhead_row, parity_rows, separate_row
from weave_bench.cuda.timing import TIMERS, Action, Timer, in_turn
from weave_bench.cuda.traffic import REQUEST, base_steps, make_steps
from weave_bench.cuda.weights import Experts
from weave_bench.results import Label, Row

Route = Callable[[Step], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Way:
    """One way to take tokens through the layer."""

    held: ExpertWeights
    steps: Sequence[Step]
    route: Route

    def __call__(self) -> list[torch.Tensor]:
        """The outputs of all steps, one after the other."""
        return [layer.experts(step.hidden, *self.route(step), self.held) for step in self.steps]

    def work(self) -> Work:
        """On average over the steps."""
        rows = assignments = 0
        for step in self.steps:
            used = self.route(step)[1]
            here = used[(used >= 0) & (used < len(self.held.w13))]
            rows, assignments = rows + len(torch.unique(here)), assignments + here.numel()
        return Work(rows / len(self.steps), assignments / len(self.steps), len(self.steps[0].hidden))


def ways(shape: LayerShape, experts: Experts, steps: list[Step], *, one: bool, parts: bool) -> dict[str, Way]:
    """The ways to be compared on the same tokens.

    Args:
        one: all tokens are of the first adapter, so that its merged model and the base model alone compare.
        parts: rerouting in operators of its own, too.
    """
    router, bias = shape.router, layer.correction_bias(shape.router, shape.experts, steps[0].logits.device)

    def fused(held: ExpertWeights) -> Route:
        return lambda step: layer.route(step, router, bias, held.expert_map)

    plain, table = experts.base.expert_map, experts.virtual.expert_map

    def rerouted(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = layer.route(step, router, bias, plain)
        rows: torch.Tensor = torch.ops.npu_weave.reroute.default(ids, step.token_slots, table)
        return weights, rows

    def separate(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.route_separately(step, router, bias, plain, table)

    base = base_steps(steps)
    found = {
        "base": Way(experts.virtual, base, fused(experts.virtual)),
        "adapters": Way(experts.virtual, steps, fused(experts.virtual)),
        "padded": Way(experts.padded, steps, fused(experts.padded)),
    }
    if one:
        found["base alone"] = Way(experts.base, base, fused(experts.base))
        found["merged"] = Way(experts.merged, base, fused(experts.merged))
    if parts:
        found["reroute"] = Way(experts.virtual, steps, rerouted)
        found["separate"] = Way(experts.virtual, steps, separate)
    return found


SAME = (
    ("adapters", "padded"),
    ("base", "base alone"),
    ("adapters", "merged"),
    ("adapters", "reroute"),
    ("adapters", "separate"),
)
"""Ways that must give the same outputs, bit by bit."""


def check_same(found: Mapping[str, Way]) -> None:
    """Raises RuntimeError unless ways that should agree do, in every bit: else their times compare nothing."""
    outputs = {name: way() for name, way in found.items()}
    for one, other in SAME:
        if other in outputs:
            pairs = zip(outputs[one], outputs[other], strict=True)
            if not all(torch.equal(left, right) for left, right in pairs):
                raise RuntimeError(f"the layer's outputs differ between {one!r} and {other!r}")


def measure_layer(
    shape: LayerShape,
    experts: Experts,
    tuned: list[tuple[int, ...]],
    plan: Plan,
    limits: Limits,
    timers: Mapping[str, Callable[[Action], Timer]] = TIMERS,
) -> dict[str, list[Row]]:
    """All batches of `plan` through one layer: rows of the tables, by the names of these.

    Args:
        timers: how each launch of `plan` is timed.
    """
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    device = experts.virtual.w13.device
    for kind, launch, tokens, adapters in tqdm(list(plan.cases()), desc=shape.name, leave=False, disable=None):
        request = 1 if kind == "decode" else REQUEST
        steps = make_steps(
            shape, tuned, tokens=tokens, adapters=adapters, request=request, count=plan.steps, device=device
        )
        last = adapters == max(plan.adapters)
        found = ways(shape, experts, steps, one=adapters == 1, parts=last)
        check_same(found)
        times = in_turn({name: timers[launch](way) for name, way in found.items()}, plan.turns)
        times = {name: [one / plan.steps for one in taken] for name, taken in times.items()}
        labels: dict[str, Label] = {"model": shape.name, "step": kind, "launch": launch, "tokens": tokens}
        work = {name: found[name].work() for name in ("base", "adapters")}
        floors = {name: floor(each, shape, limits) for name, each in work.items()}
        rows["gpu-overhead"].append(overhead_row({**labels, "adapters": adapters}, times, work, floors))
        rows["gpu-parity"] += parity_rows(labels, times, adapters)
        if last:
            rows["gpu-separate"].append(separate_row({**labels, "adapters": adapters}, times))
    return rows
