"""Table ``separate``: rerouting by one operator, and by framework operators in its place (the paper's SingleOp)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm

from npu_weave.experts.routing import LayerRouting
from weave_bench.layers.batch import Shape, Step
from weave_bench.layers.bench import Bench, check_equal
from weave_bench.layers.pairing import Way, microseconds, time_pair
from weave_bench.layers.traffic import TOP_K
from weave_bench.results import Row, Table, ratios, spread

COLUMNS = {
    "operator": "us a layer, one operator, its Python included",
    "framework": "us a layer, the same by the framework's operators",
    "times": "framework over operator, in pairs",
    "operator share": "%, rerouting by the operator of the layer's time",
    "framework share": "%, rerouting by framework operators of the layer's time",
    "layers": "time of all layers with framework operators over that with the operator, in pairs",
}
SHOWS = (
    "Both ways give the same rows; checked before timing. The calls are timed by themselves, many in a row with "
    "everything in caches, and set against the median time of a layer. The last column is the same exchange inside the "
    "layers, where what it changes is mostly below the noise. On a CPU an operator is called in microseconds and an "
    "expert is read in hundreds of them, so this says little about an NPU, where launching costs much more of a step; "
    "the 29 % of the paper are from there."
)
_CALLS = 100

Reroute = Callable[..., torch.Tensor]

_OPERATOR: Reroute = LayerRouting.reroute


def reroute_in_parts(routing: LayerRouting, ids: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
    """`LayerRouting.reroute` in framework operators: where in the flattened map, then what is there."""
    if slots is None:
        slots = routing.slots(of=ids.shape[0])
    table = routing._layer.map.table
    at = slots[: ids.shape[0], None].long() * table.shape[1] + ids
    return table.view(-1)[at]


def separate(bench: Bench) -> Table:
    """Measure every shape with all adapters, in the layers and by themselves."""
    rows = []
    with tqdm(total=len(bench.scale.shapes) * _pairs(bench), desc="separate") as bar:
        for shape in bench.scale.shapes:
            rows.append(_row(bench, shape, bar))
    return Table("separate", "Rerouting by one operator and by framework operators", COLUMNS, rows, SHOWS)


def _row(bench: Bench, shape: Shape, bar: tqdm[None]) -> Row:
    everyone, layers = len(bench.traffic.tenants), bench.woven.count
    fused, parts, operator, framework = [], [], [], []
    for turn in range(_pairs(bench)):
        step = bench.step(shape, everyone, turn)
        ways = _with(bench, step, _OPERATOR), _with(bench, step, reroute_in_parts)
        if turn == 0:  # warms up as well
            check_equal(_rows(bench, ways[0], step), _rows(bench, ways[1], step), f"rerouting, {shape.tokens} tokens")
        one, other = time_pair(*ways, swap=turn % 2 == 1, between=bench.cold)
        fused.append(one)
        parts.append(other)
        alone, apart = _alone(bench, step)
        operator.append(alone)
        framework.append(apart)
        bar.update()
    ways[0].prepare()  # as it was
    layer_us = spread(fused).median * 1e3 / layers
    return Row(
        {"step": shape.kind, "requests": shape.requests, "tokens": shape.tokens, "adapters": everyone},
        {
            "operator": spread(operator),
            "framework": spread(framework),
            "times": ratios(framework, operator),
            "operator share": 100 * spread(operator).median / layer_us,
            "framework share": 100 * spread(framework).median / layer_us,
            "layers": ratios(parts, fused),
        },
    )


def _pairs(bench: Bench) -> int:
    """Half as many as elsewhere: what is exchanged differs ten times, and in the layers below the noise."""
    return bench.scale.pairs // 2


def _with(bench: Bench, step: Step, reroute: Reroute) -> Way:
    """`step` through the layers, which reroute with `reroute` from its preparation on."""
    way = bench.with_adapters(step)

    def prepare() -> None:
        way.prepare()
        setattr(LayerRouting, "reroute", reroute)  # noqa: B010  (mypy minds an assignment to a method)

    return Way(prepare, way.run)


def _rows(bench: Bench, way: Way, step: Step) -> list[torch.Tensor]:
    way.prepare()
    return bench.woven.rows(step)


def _alone(bench: Bench, step: Step) -> tuple[float, float]:
    """Microseconds of a call by itself: the operator, and the framework's."""
    bench.woven.set_step(step.revisions, step.tokens)
    routing = LayerRouting(bench.woven.manager.store.bank.layers[0], bench.woven.manager.token_slots)
    ids = step.logits[0].topk(TOP_K, dim=-1).indices.int()
    found = [microseconds(partial(way, routing, ids), _CALLS) for way in (_OPERATOR, reroute_in_parts)]
    return found[0], found[1]
