"""Waves of requests through the client's process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec
from tqdm import tqdm

from weave_bench.serving.records import Outcome, Wave


def send(waves: Sequence[Wave], title: str) -> list[Outcome]:
    """Send the waves one after the other; returns what became of each, with a progress bar meanwhile.

    Raises:
        RuntimeError: the client ended early, or every request of a wave failed; the first failure is in the message.
            Single failures are counted (`metrics.measure`).
    """
    command = [sys.executable, "-m", "weave_bench.serving.client"]
    outcomes = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(list(waves)))
        process.stdin.close()
        for line in tqdm(process.stdout, desc=title, total=len(waves), unit="wave", disable=None):
            outcomes.append(msgspec.json.decode(line, type=Outcome))
    if len(outcomes) != len(waves):
        raise RuntimeError(f"the client ended with status {process.returncode} after {len(outcomes)} waves")
    for outcome in outcomes:
        if outcome.replies and all(reply.error for reply in outcome.replies):
            raise RuntimeError(f"{title}: every request of a wave failed; the first: {outcome.replies[0].error}")
    return outcomes
