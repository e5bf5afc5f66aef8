"""Table ``parity``: where npu-weave should cost nothing, it is timed beside what it should equal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from npu_weave.adapters.fresh_memory import fresh_tensor
from weave_bench.layers.batch import Shape, Step, decode, prefill
from weave_bench.layers.bench import COPIES, Bench, check_equal
from weave_bench.layers.pairing import Way, time_round
from weave_bench.results import Label, Row, Table, ratios, spread

COLUMNS = {
    "npu-weave": "ms, with npu-weave and virtual weight tensors",
    "other": f"ms, what it is compared with, {COPIES} copies of it",
    "ratio": "npu-weave over each copy of the other, in rounds; 1 within the noise is the aim",
    "noise": "each copy over each of the other copies, in rounds: what equal things differ by here",
}
SHOWS = (
    "The same tokens in turn through npu-weave and through what should take the same time, with caches emptied before "
    "each run. Base tokens: plain vLLM, no plugin in the layer, ordinary tensors of the base experts. One adapter: "
    "plain vLLM over the adapter's merged weights. Padded: one layer whose weights lie once in the virtual tensor, "
    "with memory under rows in use, and in ordinary tensors of as many rows, all of them with memory, in huge "
    "pages where the system has them, as those of the virtual tensor are. Before "
    "anything is timed the answers of both sides are compared, and they agree to the bit. Of what it is compared with "
    f"there are {COPIES} copies, each in memory of its own, timed in every round: two equal ordinary tensors differ by "
    "up to a tenth on this machine, by where in memory they happen to lie. The aim is met where npu-weave looks like "
    "one more copy: its median lies within the quarters of the noise. That means that no difference was resolved, not "
    "that there is none."
)

Weights = Mapping[str, torch.Tensor]


class Sides(NamedTuple):
    """What is compared: npu-weave's way of a step, and the ways over the copies."""

    ours: Callable[[Step], Way]
    copies: Sequence[Callable[[Step], Way]]


def parity(bench: Bench) -> Table:
    """Measure all three comparisons. Overwrites the weights of `bench.plain` by merged ones."""
    layers = bench.plain.count
    largest = [prefill(tokens) for tokens in bench.scale.prefill[:1]]
    shapes = [*map(decode, sorted({min(bench.scale.decode), max(bench.scale.decode)})), *largest]
    with tqdm(total=3 * len(shapes) * (bench.scale.pairs + 1), desc="parity") as bar:
        sides = Sides(bench.of_base, _plain_copies(bench))
        rows = _compare(bench, "base tokens, beside plain vLLM", shapes, layers, sides, 1, bar)
        del sides  # and the memory of its copies
        _merge(bench)
        sides = Sides(bench.with_adapters, _plain_copies(bench))  # of one adapter, the first
        rows += _compare(bench, "one adapter, beside its merged model", shapes, layers, sides, 1, bar)
        del sides
        virtual, everyone = bench.woven.weights(0), len(bench.traffic.tenants)
        sides = _padded_sides(bench, virtual)
        rows += _compare(bench, "virtual beside padded tensors", shapes, 1, sides, everyone, bar)
        bench.woven.use_weights(0, virtual)
    title = "Steps that should cost the same with npu-weave as without"
    return Table("parity", title, COLUMNS, rows, SHOWS)


def _compare(
    bench: Bench, name: str, shapes: list[Shape], layers: int, sides: Sides, adapters: int, bar: tqdm[None]
) -> list[Row]:
    rows = []
    for shape in shapes:
        rounds = []
        for turn in range(bench.scale.pairs + 1):
            step = bench.step(shape, adapters, turn)
            ways = [side(step) for side in (sides.ours, *sides.copies)]
            if turn == 0:  # warms up as well
                ours, *others = map(_answers, ways)
                for other in others:
                    check_equal(ours, other, f"{name}, {shape.kind} of {shape.tokens} tokens")
            else:
                rounds.append(time_round(ways, begin=turn % len(ways), between=bench.cold))
            bar.update()
        labels: dict[str, Label] = {"comparison": name, "step": shape.kind, "tokens": shape.tokens, "layers": layers}
        rows.append(compared(labels, rounds))
    return rows


def compared(labels: dict[str, Label], rounds: Sequence[Sequence[float]]) -> Row:
    """A row of rounds of milliseconds, each of npu-weave and of every copy."""
    pairs = [(ours, copy) for ours, *copies in rounds for copy in copies]
    equals = [pair for _, *copies in rounds for pair in itertools.permutations(copies, 2)]
    values = {
        "npu-weave": spread([ours for ours, *_ in rounds]),
        "other": spread([copy for _, copy in pairs]),
        "ratio": ratios(*zip(*pairs, strict=True)),
        "noise": ratios(*zip(*equals, strict=True)),
    }
    return Row(labels, values)


def _answers(way: Way) -> list[torch.Tensor]:
    way.prepare()
    found = way.run()
    assert isinstance(found, list), "what the layers return"
    return found


def _plain_copies(bench: Bench) -> list[Callable[[Step], Way]]:
    """Plain vLLM over its own tensors, and over copies of them."""
    layers = range(bench.plain.count)
    first: dict[int, Weights] = {index: bench.plain.weights(index) for index in layers}
    copies = [first]
    for _ in range(COPIES - 1):
        copies.append({index: {name: weight.clone() for name, weight in first[index].items()} for index in layers})

    def over(copy: dict[int, Weights]) -> Callable[[Step], Way]:
        def prepare() -> None:
            for index, weights in copy.items():
                bench.plain.use_weights(index, weights)

        return lambda step: Way(prepare, bench.without_us(step).run)

    return [over(copy) for copy in copies]


def _merge(bench: Bench) -> None:
    """Put the first adapter's experts into the ordinary tensors of plain vLLM's layers, in the base experts' place."""
    for index, layer in bench.woven.manager.store.bank.layers.items():
        slot = bench.woven.manager.store.slot_of(1)
        for expert, row in layer.map.rows_of(slot).items():
            for name, weight in bench.plain.weights(index).items():
                weight[expert].copy_(layer.tensors[name].row_view(row))


def _padded_sides(bench: Bench, virtual: Weights) -> Sides:
    """The first layer over its virtual tensors, and over ordinary ones with the same rows."""

    def over(weights: Weights) -> Callable[[Step], Way]:
        def way(step: Step) -> Way:
            woven = bench.with_adapters(step, 1)

            def prepare() -> None:
                woven.prepare()
                bench.woven.use_weights(0, weights)

            return Way(prepare, woven.run)

        return way

    return Sides(over(virtual), [over(_padded(bench, virtual)) for _ in range(COPIES)])


def _padded(bench: Bench, virtual: Weights) -> Weights:
    tensors = bench.woven.manager.store.bank.layers[0].tensors
    padded = {}
    for name, weight in virtual.items():
        # in huge pages, as virtual tensors are; written, so that rows without an adapter have memory too
        padded[name] = fresh_tensor(weight.shape, weight.dtype).zero_()
        for row in tensors[name].mapped_rows:
            padded[name][row].copy_(weight[row])
    return padded
