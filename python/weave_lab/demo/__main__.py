"""``python -m weave_lab.demo``: serve the small model with its adapters, and hold every answer against merged models.

Every task's held-out prompts go to the base model and to the task's adapter, over HTTP, to one `npu-weave serve`:
first as mixed traffic, then one by one. The same prompts go to plain vLLM, for the base model and for each merged
checkpoint. The demonstration ends with 0 only if all tokens of mixed traffic are the same, and all log-probabilities
of single requests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from weave_lab.artifacts import locate
from weave_lab.demo.comparison import run
from weave_lab.demo.report import print_answers, print_table
from weave_lab.evaluate import held_out
from weave_lab.tasks import by_name


def main() -> None:
    """Run the demonstration; exit status 1 when an answer differs."""
    parser = argparse.ArgumentParser(prog="python -m weave_lab.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, help="directory with base/ and adapters/ (default: the shipped one)")
    parser.add_argument("--count", type=int, default=30, help="prompts a task (default: 30)")
    arguments = parser.parse_args()
    models = arguments.models or locate()
    adapters = {path.name: path for path in sorted((models / "adapters").iterdir())}
    examples = {name: held_out(by_name(name), arguments.count) for name in adapters}
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="npu-weave-demo-") as scratch:
        outcomes = run(models / "base", adapters, examples, Path(scratch), console)
    print_answers(console, outcomes)
    print_table(console, outcomes)
    same = all(outcome.exact for outcome in outcomes)
    console.print(
        "[green]every answer is that of plain vLLM[/]" if same else "[red]some answers differ from plain vLLM[/]"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
