"""A short soak of the expert weight manager, and that a leak is noticed; scripts/soak_memory.sh is the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what other tests hold is none of its business."""
    return subprocess.run(
        [sys.executable, "-m", "weave_bench.soak", *options], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(("driver", "cycles"), [("simulated", 2000), ("host", 300)])
def test_nothing_stays_behind(driver: str, cycles: int) -> None:
    done = soak("--driver", driver, "--cycles", str(cycles))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing stays behind" in done.stdout


@pytest.mark.parametrize(
    ("leak", "kind"), [("page", "pages"), ("mapping", "reservations"), ("file", "files"), ("memory", "resident")]
)
def test_a_leak_on_purpose_is_found(leak: str, kind: str) -> None:
    done = soak("--driver", "simulated", "--cycles", "2000", "--leak", leak)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"leaked: {kind} " in done.stdout
