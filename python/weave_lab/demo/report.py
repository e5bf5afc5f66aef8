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
class Outcome:
    """One task: its examples, and four answers to each of them.

    Attributes:
        task: name of the task and of its adapter.
        examples: prompts with their right answers.
        base: from the base model, served with npu-weave.
        adapter: from the adapter, served with npu-weave.
        plain_base: from the base model in plain vLLM.
        merged: from the merged checkpoint in plain vLLM.
    """

    task: str
    examples: Sequence[Example]
    base: Sequence[Reply]
    adapter: Sequence[Reply]
    plain_base: Sequence[Reply]
    merged: Sequence[Reply]

    @property
    def exact(self) -> bool:
        """Whether tokens and log-probabilities are those of plain vLLM, for base and adapter alike."""
        return list(self.base) == list(self.plain_base) and list(self.adapter) == list(self.merged)

    def accuracy(self, replies: Sequence[Reply]) -> float:
        """Share of right answers, in [0, 1]."""
        return sum(map(exact_match, (e.answer for e in self.examples), (r.text for r in replies))) / len(self.examples)


def print_answers(console: Console, outcomes: Sequence[Outcome], count: int = 2) -> None:
    """The first `count` prompts of every task with each answer to them."""
    table = Table(title="answers", show_lines=True)
    for heading in ("prompt", "base", "adapter", "merged checkpoint"):
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        for index in range(count):
            replies = (outcome.base[index], outcome.adapter[index], outcome.merged[index])
            table.add_row(
                escape(outcome.examples[index].prompt), *(escape(reply.text.rstrip("\n")) for reply in replies)
            )
    console.print(table)


def print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Accuracy by task, and how many answers equal plain vLLM's in every token and every log-probability."""
    table = Table(title="accuracy on held-out prompts; answers equal to plain vLLM's, tokens and log-probabilities")
    for heading in ("task", "base", "adapter", "merged", "base = plain vLLM", "adapter = merged"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for outcome in outcomes:
        total = len(outcome.examples)
        table.add_row(
            outcome.task,
            *(f"{outcome.accuracy(replies):.0%}" for replies in (outcome.base, outcome.adapter, outcome.merged)),
            f"{_equal(outcome.base, outcome.plain_base)}/{total}",
            f"{_equal(outcome.adapter, outcome.merged)}/{total}",
        )
    console.print(table)


def _equal(served: Sequence[Reply], plain: Sequence[Reply]) -> int:
    return sum(left == right for left, right in zip(served, plain, strict=True))
