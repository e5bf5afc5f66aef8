"""All experts of a MoE layer as one differentiable operation, made for training on a CPU.

Left to autograd, one small module per expert costs hundreds of tiny operations a layer, and gathers and scatters whose
backward is slower than the matrix products. Here tokens are sorted by expert once, each expert multiplies its own run
of rows straight into a shared buffer, and both backward passes of the sorting are plain gathers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class GroupedExperts(torch.autograd.Function):
    """Mixture output of the SwiGLU experts a router chose."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, *matrices: torch.Tensor
    ) -> torch.Tensor:
        """Computes ``sum_k weights[t, k] * expert[ids[t, k]](x[t])``.

        Args:
            ctx: autograd's context.
            x: float32 `[tokens, hidden]`.
            weights: float32 `[tokens, top_k]`.
            ids: int64 `[tokens, top_k]`.
            matrices: gate and up `[width, hidden]` and down `[hidden, width]` of expert 0, then of expert 1, ...

        Returns:
            float32 `[tokens, hidden]`.
        """
        tokens, top_k = ids.shape
        order = ids.flatten().argsort(stable=True)
        ends = torch.bincount(ids.flatten(), minlength=len(matrices) // 3).cumsum(0).tolist()
        runs = list(zip([0, *ends[:-1]], ends, strict=True))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        gate, up, down = (torch.stack(matrices[i::3]) for i in range(3))
        gate_up = torch.cat((gate, up), dim=1)

        rows = x[order // top_k]
        hidden = rows.new_empty(len(rows), gate_up.shape[1])
        for expert, (start, end) in enumerate(runs):
            torch.mm(rows[start:end], gate_up[expert].t(), out=hidden[start:end])
        activated = _swiglu(hidden)
        out = torch.empty_like(rows)
        for expert, (start, end) in enumerate(runs):
            torch.mm(activated[start:end], down[expert].t(), out=out[start:end])
        by_token = out[inverse].view(tokens, top_k, -1)
        ctx.save_for_backward(rows, hidden, activated, by_token, weights, order, inverse, gate_up, down)
        ctx.runs = runs
        return torch.bmm(weights.unsqueeze(1), by_token).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, weights and those matrices that require one."""
        rows, hidden, activated, by_token, weights, order, inverse, gate_up, down = ctx.saved_tensors
        grad, top_k = grads[0], weights.shape[1]
        grad_weights = torch.bmm(by_token, grad.unsqueeze(-1)).squeeze(-1)
        grad_out = grad[order // top_k].mul_(weights.flatten()[order].unsqueeze(-1))
        grad_activated = torch.empty_like(activated)
        for expert, (start, end) in enumerate(ctx.runs):
            torch.mm(grad_out[start:end], down[expert], out=grad_activated[start:end])
        grad_hidden = _swiglu_backward(hidden, grad_activated)
        grad_rows = torch.empty_like(rows)
        for expert, (start, end) in enumerate(ctx.runs):
            torch.mm(grad_hidden[start:end], gate_up[expert], out=grad_rows[start:end])

        matrix_grads: list[torch.Tensor | None] = []
        for expert, (start, end) in enumerate(ctx.runs):
            wanted = ctx.needs_input_grad[3 + 3 * expert : 6 + 3 * expert]
            if start == end or not any(wanted):
                matrix_grads += [None, None, None]
                continue
            matrix_grads += (grad_hidden[start:end].t() @ rows[start:end]).chunk(2)
            matrix_grads.append(grad_out[start:end].t() @ activated[start:end])
        return grad_rows[inverse].view(len(weights), top_k, -1).sum(1), grad_weights, None, *matrix_grads


def _swiglu(hidden: torch.Tensor) -> torch.Tensor:
    gate, up = hidden.chunk(2, dim=1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(hidden: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    gate, up = hidden.chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    return torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), dim=1)
