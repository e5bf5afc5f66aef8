"""The CUDA backend, in Triton. Importing this package registers it where triton is installed, and imports no triton.

The kernels are imported by the first call of an operator on a CUDA tensor, and compiled by the first call with each
dtype, layout, number of experts and set of router settings: an engine's warm-up, before it captures graphs. From then
on a call launches one kernel and reads no value on the host. The number of tokens compiles nothing new.

A GPU cannot refuse a token as the CPU does. A token with a slot or an expert id outside of expert_map gets -1, which
is no row, for all of its ids, and NaN for all of its weights; nothing outside of expert_map is read for it. All other
errors, those of dtypes and shapes, are raised as by the reference. So is RuntimeError for tensors on different devices,
and, by ``reroute_``, for ids whose elements lie over each other or over those of another argument.

Kernels keep to what triton-ascend 3.2 compiles as well: no sort, no gather, int32 for whatever is compared or reduced,
and a loop over blocks of tokens, so that any number of programs does the work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from weave_ops.schema import LIBRARY

MODULE_OF = {
    "gating_reroute": "weave_ops.triton.gating_reroute",
    "reroute": "weave_ops.triton.reroute",
    "reroute_": "weave_ops.triton.reroute",
}
"""Where each operator's kernel is, in a function of the operator's name."""


def _on_first_call(operator: str) -> Callable[..., Any]:
    """The operator's function, whose module is imported when it is called for the first time."""

    @functools.cache
    def function() -> Callable[..., Any]:
        loaded: Callable[..., Any] = getattr(importlib.import_module(MODULE_OF[operator]), operator)
        return loaded

    return lambda *arguments: function()(*arguments)


if importlib.util.find_spec("triton") is not None:
    for _operator in MODULE_OF:
        LIBRARY.impl(_operator, _on_first_call(_operator), "CUDA")  # type: ignore[no-untyped-call]
