"""Whether the layer computes what it should, on the device at hand, before any of its times count."""

from __future__ import annotations

import torch

from weave_bench.cuda import layer
from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.reference import experts_reference, relative_error
from weave_bench.cuda.step import ExpertWeights, Step

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Norm of the error over norm of the output: what rounding between two products and a sum can do."""


def check_step(shape: LayerShape, held: ExpertWeights, step: Step) -> float:
    """The relative error of one step against float64. Raises RuntimeError when it is more than rounding."""
    bias = layer.correction_bias(shape.router, shape.experts, step.logits.device)
    weights, rows = layer.route(step, shape.router, bias, held.expert_map)
    found = layer.experts(step.hidden, weights, rows, held)
    error = relative_error(found, experts_reference(step.hidden, weights, rows, held))
    allowed = TOLERANCE[step.hidden.dtype]
    if not error <= allowed:
        raise RuntimeError(f"{shape.name}: the layer's output is {error:.2g} off, at most {allowed:.2g} is rounding")
    return error
