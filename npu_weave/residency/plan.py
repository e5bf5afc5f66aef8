"""How many adapters a device holds beside a base model, and what is left for the KV cache: four designs compared.

Everything here is arithmetic on one device (a tensor parallel rank); `npu-weave memory` measures what it predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from npu_weave.errors import CapacityError, ConfigError
from npu_weave.residency.footprint_formula import ExpertSets, Need, need
from npu_weave.residency.plan_base import BaseCost

Design = Literal["exact", "mapped", "padded", "merged"]
DESIGNS: tuple[Design, ...] = get_args(Design)
PAGE_BYTES = 2 << 20
MOST_ADAPTERS = 4096
"""Where the search for the largest number of adapters ends."""

NamedSets = tuple[str, ExpertSets]


@dataclass(frozen=True)
class Budget:
    """A device's memory and what of it is not for weights and KV cache.

    Attributes:
        memory_bytes: the device's memory.
        utilization: the share of it that one engine may use (vLLM's ``--gpu-memory-utilization``), above 0, up to 1.
        overhead_bytes: of that share, what an engine needs beside weights and KV cache: activations, graphs, buffers.
        least_tokens: KV cache tokens without which no engine starts: one request of the longest length.
    """

    memory_bytes: int
    utilization: float
    overhead_bytes: int
    least_tokens: int

    def __post_init__(self) -> None:
        for name, wrong, expected in (
            ("device memory", self.memory_bytes < 1, "a positive number of bytes"),
            ("memory utilization", not 0 < self.utilization <= 1, "more than 0 and at most 1"),
            ("overhead", self.overhead_bytes < 0, "no negative number of bytes"),
            ("model length", self.least_tokens < 1, "a positive number of tokens"),
        ):
            if wrong:
                raise ConfigError("PLAN_ARGUMENT", name, expected=expected, got=str(self))

    def left(self, weights_bytes: int, engines: int = 1) -> int:
        """Bytes for the KV cache beside these weights, negative where they do not fit."""
        return int(self.memory_bytes * self.utilization) - engines * self.overhead_bytes - weights_bytes


@dataclass(frozen=True)
class Outcome:
    """One design with a number of adapters.

    Attributes:
        weights_bytes: base model and adapters.
        left_bytes: for the KV cache; negative where the weights do not fit.
        kv_tokens: what the cache holds, over all engines of the design.
        fits: every engine has the cache it needs to start.
    """

    weights_bytes: int
    left_bytes: int
    kv_tokens: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """A base model, the kinds of adapters it is to serve, and the device.

    Attributes:
        base: the model on one rank.
        kinds: adapters as they come; adapter number `i` is like ``kinds[i % len(kinds)]``.
        count: adapters wanted at once.
        budget: of the device.
        e_max: rows an adapter has in each layer of the padded design.
    """

    base: BaseCost
    kinds: tuple[NamedSets, ...]
    count: int
    budget: Budget
    e_max: int

    @property
    def loaded(self) -> tuple[NamedSets, ...]:
        """The adapters wanted; one that is like an earlier one has a number behind its name."""
        return tuple(self._named(number) for number in range(self.count))

    @cached_property
    def most(self) -> dict[Design, int]:
        """The largest number of adapters that each design holds, up to `MOST_ADAPTERS`; without adapters, 0."""
        return {design: self._most(design) for design in DESIGNS}

    def need(self, count: int) -> Need:
        """Bytes of the routed experts of the base model and the first `count` adapters."""
        geometry = self.base.geometry
        return need(geometry, geometry.moe_layers, self.first(count), self.e_max, PAGE_BYTES)

    def first(self, count: int) -> list[ExpertSets]:
        """The tuned experts of the first `count` adapters, wanted or not."""
        return [self.kinds[number % len(self.kinds)][1] for number in range(count)]

    def outcome(self, design: Design, count: int) -> Outcome:
        """What `design` leaves on the device with the first `count` adapters."""
        needed = self.need(count)
        experts = {
            "exact": needed.exact_bytes,
            "mapped": needed.paged_bytes,
            "padded": needed.padded_bytes,
            "merged": needed.merged_bytes,
        }
        engines = max(1, count) if design == "merged" else 1
        weights = engines * self.base.shared_bytes + experts[design]
        left = self.budget.left(weights, engines)
        tokens = max(0, left) // self.base.kv_token_bytes
        return Outcome(weights, left, tokens, tokens // engines >= self.budget.least_tokens)

    def rows(self, count: int) -> dict[int, int]:
        """MoE layer to its rows in use: base experts and those of the first `count` adapters."""
        base, sets = self.base.geometry.num_experts, self.first(count)
        return {layer: base + sum(len(each.get(layer, ())) for each in sets) for layer in self.base.geometry.moe_layers}

    def _named(self, number: int) -> NamedSets:
        name, sets = self.kinds[number % len(self.kinds)]
        again = number // len(self.kinds)
        return (f"{name}#{again + 1}" if again else name), sets

    def _most(self, design: Design) -> int:
        if not self.kinds:
            return 0
        return largest(lambda count: self.outcome(design, count).fits, MOST_ADAPTERS)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 0 to `most` that fits, where none fits beyond one that does not; 0 always does."""
    fitting, beyond = 0, 1
    while beyond <= most and fits(beyond):
        fitting, beyond = beyond, 2 * beyond
    beyond = min(beyond, most + 1)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def make_plan(
    base: BaseCost, kinds: Sequence[NamedSets], budget: Budget, *, count: int | None = None, e_max: int | None = None
) -> Plan:
    """Checks the wishes against each other and the base model against the device.

    Args:
        base: the model.
        kinds: what adapters are like.
        budget: of the device.
        count: adapters wanted at once; None: one of each kind.
        e_max: None: the most experts any of them tunes in any layer.

    Raises:
        ConfigError: PLAN_ARGUMENT: a number is senseless.
        CapacityError: PLAN_BASE_TOO_LARGE: the base model alone leaves no room for one request.
    """
    tightest = max((len(ids) for _, sets in kinds for ids in sets.values()), default=0)
    wanted = len(kinds) if count is None else count
    if wanted < 0 or (wanted and not kinds):
        expected = "adapters to plan for" if wanted > 0 else "no negative number"
        raise ConfigError("PLAN_ARGUMENT", "number of adapters", expected=expected, got=f"{len(kinds)} kinds, {wanted}")
    if e_max is not None and e_max < tightest:
        raise ConfigError("PLAN_ARGUMENT", "E_max", expected=f"at least {tightest}, for the adapters", got=str(e_max))
    plan = Plan(base, tuple(kinds), wanted, budget, tightest if e_max is None else e_max)
    alone = plan.outcome("exact", 0)
    if not alone.fits:
        least = budget.least_tokens * base.kv_token_bytes
        raise CapacityError(
            "PLAN_BASE_TOO_LARGE",
            base.title,
            expected=f"{alone.weights_bytes} bytes of weights and {least} of KV cache for {budget.least_tokens} tokens",
            got=f"{max(0, budget.left(0))} bytes for both on the device",
            remedy="a device with more memory, a larger --tensor-parallel-size, or a smaller --max-model-len",
        )
    return plan
