"""Who asks what and when: Poisson arrivals, shares of adapters by a power law, prompts of each adapter's own domain.

After section 5 of the ExpertWeave paper (arXiv 2508.17624), which serves requests that arrive as a Poisson process per
adapter, with shares by a power law of shape alpha where 1 is uniform and less is more skewed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weave_bench.serving.records import Call
from weave_lab.tasks import Example, by_name, generate

TEXT_SEED = "serving"
_POOL = 200
"""Distinct prompts a domain."""


@dataclass(frozen=True)
class Arrival:
    """One request before it is known how many adapters there are.

    Attributes:
        at: seconds since the first could have come.
        quantile: in (0, 1]; decides the adapter, see `adapter_at`.
        pick: decides the prompt within the adapter's domain.
    """

    at: float
    quantile: float
    pick: int


def shares(adapters: int, alpha: float) -> list[float]:
    """Shares of the load, the largest first, summing to 1.

    The distribution on [0, 1] with density ``alpha * x ** (alpha - 1)`` (`numpy.random.power`), cut into equal parts:
    adapter ``i`` of ``n`` gets ``((i + 1) / n) ** alpha - (i / n) ** alpha``.

    Raises:
        ValueError: `alpha` is not in (0, 1], or there is no adapter.
    """
    if adapters < 1 or not 0 < alpha <= 1:
        raise ValueError(f"{adapters} adapters with alpha {alpha}: at least one adapter, alpha in (0, 1]")
    edges = (np.arange(adapters + 1) / adapters) ** alpha
    return [float(share) for share in np.diff(edges)]


def adapter_at(quantile: float, adapters: int, alpha: float) -> int:
    """The adapter a quantile falls on, by `shares`: the inverse of their sum."""
    return min(int(adapters * quantile ** (1 / alpha)), adapters - 1)


def arrivals(rate: float, horizon: float, seed: int) -> list[Arrival]:
    """A Poisson process of `rate` requests a second over `horizon` seconds, in order of time.

    Each arrival falls on adapter ``i`` with probability ``shares[i]``, on its own: so the arrivals of each adapter are
    a Poisson process of rate ``rate * shares[i]``, independent of the others'. Systems with different numbers of
    adapters see the same instants.
    """
    generator = np.random.default_rng(seed)
    found, now = [], generator.exponential(1 / rate)
    while now < horizon:
        found.append(Arrival(float(now), 1 - float(generator.random()), int(generator.integers(1 << 30))))
        now += generator.exponential(1 / rate)
    return found


@dataclass(frozen=True)
class Asked:
    """A model of a server, and the task whose prompts it is asked (see `weave_lab.tasks`)."""

    name: str
    domain: str


class Prompts:
    """Held-out prompts of the tasks, and how long each answer is. Keeps what it has generated."""

    def __init__(self) -> None:
        self._pools: dict[str, list[Example]] = {}

    def pool(self, domain: str) -> list[Example]:
        """The examples of a task, the same every time."""
        if domain not in self._pools:
            self._pools[domain] = generate(by_name(domain), _POOL, TEXT_SEED)
        return self._pools[domain]

    def example(self, domain: str, pick: int) -> Example:
        """One example of a task."""
        pool = self.pool(domain)
        return pool[pick % len(pool)]

    def text(self, domain: str, tokens: int, pick: int) -> str:
        """A prompt of exactly `tokens` bytes, which are the small model's tokens: examples one after the other."""
        rng, parts, length = random.Random(f"{domain}/{tokens}/{pick}"), [], 0
        while length < tokens:
            example = self.example(domain, rng.randrange(_POOL))
            parts.append(f"{example.prompt}{example.answer}\n".encode("ascii", "replace").decode())
            length += len(parts[-1])
        return "".join(parts)[:tokens]

    def lengths(self, domains: Sequence[str]) -> dict[str, str]:
        """For people: the lengths of prompts and answers by domain, in tokens (bytes), least, mean and most."""
        described = {}
        for domain in domains:
            prompts = [len(example.prompt.encode()) for example in self.pool(domain)]
            answers = [answer_tokens(example) for example in self.pool(domain)]
            described[domain] = f"prompt {_range(prompts)}, answer {_range(answers)}"
        return described


def answer_tokens(example: Example) -> int:
    """Tokens of the right answer with the newline that ends it; every request asks for as many, whatever it gets."""
    return len(example.answer.encode()) + 1


def calls(
    arrived: Sequence[Arrival], alpha: float, domains: Sequence[str], targets: Sequence[tuple[str, str]],
    texts: Prompts, lengths: tuple[int, int] | None = None,
) -> list[Call]:  # fmt: skip
    """The requests of one run.

    Args:
        arrived: when, see `arrivals`.
        alpha: see `shares`.
        domains: the task of each adapter.
        targets: URL and model name that serve each adapter, in the same order.
        texts: where prompts come from.
        lengths: tokens of every prompt and every answer; None takes the tasks' own.
    """
    made = []
    for arrival in arrived:
        index = adapter_at(arrival.quantile, len(domains), alpha)
        if lengths is None:
            example = texts.example(domains[index], arrival.pick)
            prompt, tokens = example.prompt, answer_tokens(example)
        else:
            prompt, tokens = texts.text(domains[index], lengths[0], arrival.pick), lengths[1]
        made.append(Call(arrival.at, *targets[index], prompt, tokens))
    return made


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} / {sum(values) / len(values):.0f} / {max(values)}"
