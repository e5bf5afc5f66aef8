"""The distinct rows of expert weights that a batch touches: what a decode step has to read, whoever serves it."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def distinct_rows(rows: Iterable[torch.Tensor]) -> int:
    """How many rows are touched, over all layers; each tensor, of any shape, holds the row numbers of one layer."""
    return sum(len(torch.unique(layer)) for layer in rows)
