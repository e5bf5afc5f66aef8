"""What a task is: a named, seeded source of prompts with one right answer each."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["train", "held_out"]

PROMPT_END = " -> "
ANSWER_END = "\n"

_PATIENCE = 5000
"""Draws in a row without a new prompt after which a task counts as exhausted."""


@dataclass(frozen=True)
class Example:
    """One prompt and its only right answer.

    Attributes:
        prompt: what the model is given, ending in `` -> `` (free text has an empty prompt).
        answer: what it should write, without the newline that ends every answer.
    """

    prompt: str
    answer: str


class Task(Protocol):
    """A text task. Implementations keep no state: all randomness comes from the generator passed in."""

    @property
    def name(self) -> str:
        """Lower-case identifier; the adapters' directories and served names are called so."""

    def example(self, rng: random.Random) -> Example:
        """Draws one example; advances `rng` and mutates nothing else."""


@dataclass(frozen=True)
class LineTask:
    """A task of the form ``name: question -> answer``.

    Attributes:
        name: the task's name, which also opens every prompt.
        draw: returns one (question, answer) pair drawn from the generator.
    """

    name: str
    draw: Callable[[random.Random], tuple[str, str]]

    def example(self, rng: random.Random) -> Example:
        question, answer = self.draw(rng)
        return Example(f"{self.name}: {question}{PROMPT_END}", answer)


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its digest: one in eight is held out, whatever the seed."""
    return "held_out" if hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 8 == 0 else "train"


def stream(task: Task, seed: int | str, split: Split) -> Iterator[Example]:
    """Examples of one split without end, the same for the same seed. Held-out prompts never occur in ``train``."""
    rng = random.Random(f"{task.name}/{split}/{seed}")
    while True:
        example = task.example(rng)
        if not example.prompt or split_of(example.prompt) == split:
            yield example


def generate(task: Task, count: int, seed: int | str = 0, split: Split = "held_out") -> list[Example]:
    """The first `count` examples with distinct prompts of a split.

    Raises:
        ValueError: the task does not have that many distinct prompts.
    """
    seen: dict[str, Example] = {}
    fruitless = 0
    for example in stream(task, seed, split):
        fruitless = fruitless + 1 if example.prompt in seen else 0
        seen.setdefault(example.prompt, example)
        if len(seen) == count:
            return list(seen.values())
        if fruitless == _PATIENCE:
            break
    raise ValueError(f"task {task.name!r} has only {len(seen)} distinct prompts, {count} were asked for")


def exact_match(expected: str, written: str) -> bool:
    """True when the first line of `written` is the expected answer, character by character."""
    return written.split(ANSWER_END, 1)[0] == expected
