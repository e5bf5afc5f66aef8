"""The part ``accuracy``: what base model, merged checkpoints and served adapters answer, task by task.

As the paper's table of accuracies, on the small model that ships with the project: its tasks are small too, and made
for it, so what transfers is that served and merged are the same, not how high either is.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

from weave_bench.results import Part, Row, Table
from weave_lab.artifacts import locate
from weave_lab.demo.comparison import run
from weave_lab.demo.report import Outcome, equal_alone, equal_together
from weave_lab.evaluate import held_out
from weave_lab.tasks import by_name

PROMPTS, QUICK_PROMPTS = 120, 10
"""Held-out prompts a task."""
QUICK_TASKS = 2

COLUMNS = {
    "base": "share of right answers of the base model",
    "merged": "of the merged checkpoint, in plain vLLM",
    "served": "of the adapter, served among mixed traffic",
    "same tokens": "share of answers with the tokens of plain vLLM, base and adapter, among mixed traffic",
    "same bits": "share of answers whose tokens and log-probabilities are plain vLLM's, asked one by one",
}


def measure(*, quick: bool) -> Part:
    """Serve every task's adapter at once, and plain vLLM with each merged checkpoint, to the same prompts."""
    begun = time.monotonic()
    models, count = locate(), QUICK_PROMPTS if quick else PROMPTS
    paths = sorted((models / "adapters").iterdir())[: QUICK_TASKS if quick else None]
    adapters = {path.name: path for path in paths}
    examples = {name: held_out(by_name(name), count) for name in adapters}
    with tempfile.TemporaryDirectory(prefix="npu-weave-accuracy-") as scratch:
        outcomes = run(models / "base", adapters, examples, Path(scratch), Console(highlight=False))
    table = Table(
        "accuracy",
        "Accuracy on held-out prompts, and answers equal to plain vLLM's",
        COLUMNS,
        [_row(outcome) for outcome in outcomes],
        "Served equals merged exactly: the same tokens under mixed traffic, the same bits one by one. The model is "
        "small and its tasks are made for it; the heights say nothing about larger ones.",
    )
    return Part(
        "accuracy", time.monotonic() - begun, quick, {"model": "weave-tiny, shipped", "prompts a task": count}, [table]
    )


def _row(outcome: Outcome) -> Row:
    pairs = ((outcome.base, outcome.plain_base), (outcome.adapter, outcome.merged))
    asked = 2 * len(outcome.examples)
    return Row(
        {"task": outcome.task},
        {
            "base": outcome.accuracy(outcome.base),
            "merged": outcome.accuracy(outcome.merged),
            "served": outcome.accuracy(outcome.adapter),
            "same tokens": sum(equal_together(*pair) for pair in pairs) / asked,
            "same bits": sum(equal_alone(*pair) for pair in pairs) / asked,
        },
    )
