"""What the demonstration found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weave_lab.demo.traffic import Reply
from weave_lab.tasks import Example, exact_match


@dataclass(frozen=True)
class Answers:
    """One model's replies to the prompts of one task, asked twice.

    Attributes:
        together: many requests at a time, those of other models among them.
        alone: one request at a time.
    """

    together: Sequence[Reply]
    alone: Sequence[Reply]


@dataclass(frozen=True)
class Outcome:
    """One task: its examples, and the answers of four models to them.

    Attributes:
        task: name of the task and of its adapter.
        examples: prompts with their right answers.
        base: the base model, served with npu-weave.
        adapter: the adapter, served with npu-weave.
        plain_base: the base model in plain vLLM.
        merged: the merged checkpoint in plain vLLM.
    """

    task: str
    examples: Sequence[Example]
    base: Answers
    adapter: Answers
    plain_base: Answers
    merged: Answers

    @property
    def exact(self) -> bool:
        """Whether base and adapter answer as plain vLLM does, in each comparison of `print_table`."""
        pairs = ((self.base, self.plain_base), (self.adapter, self.merged))
        return all(equal_alone(*pair) == equal_together(*pair) == len(self.examples) for pair in pairs)

    def accuracy(self, answers: Answers) -> float:
        """Share of right answers under mixed traffic, in [0, 1]."""
        right = (exact_match(e.answer, r.text) for e, r in zip(self.examples, answers.together, strict=True))
        return sum(right) / len(self.examples)


def equal_alone(served: Answers, plain: Answers) -> int:
    """Answers whose tokens and log-probabilities are the same, bit by bit, when each request runs alone."""
    return sum(left == right for left, right in zip(served.alone, plain.alone, strict=True))


def equal_together(served: Answers, plain: Answers) -> int:
    """Answers whose tokens are the same when `served` runs among mixed traffic and `plain` alone."""
    return sum(left.tokens == right.tokens for left, right in zip(served.together, plain.alone, strict=True))


def print_answers(console: Console, outcomes: Sequence[Outcome], count: int = 2) -> None:
    """The first `count` prompts of every task with each answer to them."""
    table = Table(title="answers under mixed traffic", show_lines=True)
    for heading in ("prompt", "base", "adapter", "merged checkpoint"):
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        for index in range(count):
            replies = [answers.together[index] for answers in (outcome.base, outcome.adapter, outcome.merged)]
            texts = [outcome.examples[index].prompt, *(reply.text.rstrip("\n") for reply in replies)]
            table.add_row(*map(escape, texts))
    console.print(table)


def print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Accuracy by task, and how many answers are those of plain vLLM."""
    table = Table(title="accuracy on held-out prompts, and answers equal to plain vLLM's")
    table.add_column("task")
    for heading in ("base", "adapter", "merged", "tokens, base", "tokens, adapter", "bits, base", "bits, adapter"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        base, adapter = (outcome.base, outcome.plain_base), (outcome.adapter, outcome.merged)
        equal = (equal_together(*base), equal_together(*adapter), equal_alone(*base), equal_alone(*adapter))
        table.add_row(
            outcome.task,
            *(f"{outcome.accuracy(answers):.0%}" for answers in (outcome.base, outcome.adapter, outcome.merged)),
            *(f"{count}/{len(outcome.examples)}" for count in equal),
        )
    console.print(table)
    total = sum(len(outcome.examples) for outcome in outcomes)
    console.print(
        "tokens: the same tokens, asked among mixed traffic. bits: the same tokens and log-probabilities to the last "
        "bit, asked one by one, as the last bits of plain vLLM itself depend on what else is in the batch: here in "
        f"{_shaken(outcomes)} of the merged checkpoints' {total} answers."
    )


def _shaken(outcomes: Sequence[Outcome]) -> int:
    """Answers of plain vLLM whose log-probabilities change with the batch."""
    return sum(
        alone != together
        for outcome in outcomes
        for alone, together in zip(outcome.merged.alone, outcome.merged.together, strict=True)
    )
