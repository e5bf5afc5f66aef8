"""How far apart tokens are with loads and without, from windows of either kind."""

from __future__ import annotations

import numpy as np
import pytest

from weave_bench.live import estimate


def p99(windows: list[list[float]]) -> float:
    return float(np.percentile(np.concatenate(windows), 99))


def test_a_percentile_is_of_all_windows_together() -> None:
    """One window with many long gaps is a part of all gaps, not one vote of three."""
    calm = [[0.02] * 100, [0.02] * 100, [0.02] * 300]
    busy = [[0.02] * 100, [0.02] * 100, [0.02] * 280 + [0.05] * 20]
    without, with_loads, ratio = estimate(list(zip(calm, busy, strict=True)), p99)
    assert without.median == pytest.approx(0.02) and with_loads.median == pytest.approx(0.05)
    assert ratio.median == pytest.approx(2.5) and ratio.repeats == 3
    assert ratio.low == pytest.approx(1.0) and ratio.high == pytest.approx(2.5), "not every draw has that window"


def test_sides_are_drawn_together() -> None:
    """Windows of a slow minute are slow on both sides, and their ratio is not."""
    pairs = [([0.01 * n] * 50, [0.011 * n] * 50) for n in range(1, 9)]
    without, _, ratio = estimate(pairs, lambda windows: float(np.concatenate(windows).mean()))
    assert without.low < without.high
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.1, 1.1, 1.1))
