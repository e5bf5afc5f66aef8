"""The forms in which vllm-ascend keeps a layer's expert weights, and how an adapter's experts come into them.

A form says which tensors of a layer the kernels read, and makes those of other experts: first `stored`, as the loader
of vllm-ascend would leave them, then `processed`, as its processing after loading does. That runs on the device, for
all experts of a layer at once; this runs on the host, for a few. `check_processing` compares the two at start-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.errors import UnsupportedError
from npu_weave.experts.assembly import Share, assembled
from npu_weave.memory import fractal_nz, npu_tensor
from npu_weave.memory.npu_tensor import NpuFormat
from npu_weave.memory.row_bytes import same_bits

_INT8 = torch.iinfo(torch.int8)


class WeightForm(Protocol):
    """One form.

    Attributes:
        fields: attribute of the module that owns the weights -> field of ``MoEWeights`` in which kernels get it.
    """

    fields: Mapping[str, str]

    def stored(self, experts: Sequence[ExpertTensors], share: Share) -> dict[str, torch.Tensor]:
        """This rank's parameters for `experts`, as vllm-ascend's loader leaves them: ``[len(experts), ...]``."""

    def processed(self, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """For each of `fields` what the kernels read, in the memory order of rows."""


class Unquantised:
    """``w13_weight [E, H, 2 I]`` and ``w2_weight [E, I, H]`` of the model's type.

    Args:
        dtype: of the weights.
        formats: of each of `fields`.
    """

    fields: Mapping[str, str] = {"w13_weight": "w1", "w2_weight": "w2"}

    def __init__(self, dtype: torch.dtype, formats: Mapping[str, NpuFormat]) -> None:
        self._dtype = dtype
        self._formats = formats

    def stored(self, experts: Sequence[ExpertTensors], share: Share) -> dict[str, torch.Tensor]:
        """`WeightForm.stored`: ``w13_weight [E, 2 I, H]``, gate before up, and ``w2_weight [E, H, I]``."""
        return {name: weight.to(self._dtype) for name, weight in assembled(experts, share).items()}

    def processed(self, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`WeightForm.processed`: transposed, and in blocks where the format is FRACTAL_NZ."""
        return {name: _laid_out(weight, self._formats[name]) for name, weight in stored.items()}


class W8A8Dynamic:
    """int8 weights with a scale for every output channel; activations are quantised in each step (W8A8_DYNAMIC).

    An adapter's experts come unquantised, as they were trained, and are quantised as they are read (`quantise`).
    Offsets are zero then, and reach no kernel.

    Args:
        scale_dtype: in which vllm-ascend keeps scales.
        formats: of each of `fields`.
    """

    fields: Mapping[str, str] = {
        "w13_weight": "w1",
        "w2_weight": "w2",
        "w13_weight_scale_fp32": "w1_scale",
        "w2_weight_scale": "w2_scale",
    }

    def __init__(self, scale_dtype: torch.dtype, formats: Mapping[str, NpuFormat]) -> None:
        self._scale_dtype = scale_dtype
        self._formats = formats

    def stored(self, experts: Sequence[ExpertTensors], share: Share) -> dict[str, torch.Tensor]:
        """`WeightForm.stored`: the unquantised form's, in int8, with ``..._scale`` and ``..._offset [E, channels, 1]``.

        A matrix is quantised whole, before a rank takes its part: ranks must have one scale for a channel they share.
        """
        parts: dict[str, list[torch.Tensor]] = {}

        def add(name: str, weight: torch.Tensor, scale: torch.Tensor) -> None:
            parts.setdefault(name, []).append(weight)
            parts.setdefault(f"{name}_scale", []).append(scale.to(self._scale_dtype))
            parts.setdefault(f"{name}_offset", []).append(torch.zeros_like(scale, dtype=self._scale_dtype))

        for expert in experts:
            gate, up, down = (quantise(weight) for weight in expert)
            w13 = [torch.cat([share(one, 0), share(other, 0)]) for one, other in zip(gate, up, strict=True)]
            add("w13_weight", *w13)
            add("w2_weight", share(down[0], 1), down[1])
        return {name: torch.stack(tensors) for name, tensors in parts.items()}

    def processed(self, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`WeightForm.processed`: weights transposed and in blocks, scales ``[E, channels]``."""
        return {
            "w13_weight": _laid_out(stored["w13_weight"], self._formats["w13_weight"]),
            "w2_weight": _laid_out(stored["w2_weight"], self._formats["w2_weight"]),
            "w13_weight_scale_fp32": stored["w13_weight_scale"].flatten(1).float(),
            "w2_weight_scale": stored["w2_weight_scale"].flatten(1),
        }


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` in int8, and the scale of each row, ``[out, 1]`` of the weights' type: symmetric, by the largest
    magnitude.

    As ModelSlim's min-max quantiser does it for W8A8_DYNAMIC: in the type of the weights, so for bfloat16 the scale is
    rounded before it divides and the quotient before it is rounded to an integer, halves to even.
    """
    largest = weight.abs().amax(1, keepdim=True)
    scale = (largest / _INT8.max).clamp(min=torch.finfo(torch.float32).eps)
    return (weight / scale).round().clamp(_INT8.min, _INT8.max).to(torch.int8), scale


def form_of(experts: Any) -> WeightForm | None:
    """The form of the weights that the module `experts` owns, processed by now; None for one that is not known."""
    method = type(experts.quant_method).__name__  # its module differs between releases
    if method == "AscendFusedMoEMethod":
        method = type(experts.quant_method.quant_method).__name__
    if method == "AscendUnquantizedFusedMoEMethod":
        return Unquantised(experts.w13_weight.dtype, _formats(experts, Unquantised.fields))
    if method == "AscendW8A8DynamicFusedMoEMethod":
        return W8A8Dynamic(experts.w2_weight_scale.dtype, _formats(experts, W8A8Dynamic.fields))
    return None


def check_processing(form: WeightForm, experts: Any, share: Share, trial: ExpertTensors, config: VllmConfig) -> None:
    """Have vllm-ascend process an expert on the device, and compare every bit with what this project makes of it.

    Args:
        experts: the module whose method of quantisation is to process it; not touched.
        trial: any expert of the model's sizes.

    Raises:
        UnsupportedError: WEIGHT_PROCESSING.
    """
    stored = form.stored([trial], share)
    staging: Any = nn.Module()
    for name, weight in stored.items():
        setattr(staging, name, nn.Parameter(weight.to(experts.w13_weight.device), requires_grad=False))
    with set_current_vllm_config(config):
        experts.quant_method.process_weights_after_loading(staging)
    for name, ours in form.processed(stored).items():
        theirs = npu_tensor.memory_of(getattr(staging, name).data)
        if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape) or not same_bits(theirs.contiguous(), ours):
            raise UnsupportedError(
                "WEIGHT_PROCESSING",
                name,
                expected=f"{ours.dtype} {list(ours.shape)}, in the order of bytes that adapters are packed in",
                got=f"{theirs.dtype} {list(theirs.shape)} of vllm-ascend's own processing, with other bytes",
                remedy="install a supported version of vllm-ascend and CANN, or report this one",
            )


def _laid_out(weight: torch.Tensor, form: NpuFormat) -> torch.Tensor:
    """``[E, out, in]`` as the grouped matmul reads it: ``[E, in, out]``, in blocks for FRACTAL_NZ."""
    turned = weight.transpose(1, 2)
    return fractal_nz.pack(turned) if form is NpuFormat.FRACTAL_NZ else turned.contiguous()


def _formats(experts: Any, fields: Mapping[str, str]) -> dict[str, NpuFormat]:
    return {name: npu_tensor.format_of(getattr(experts, name).data) for name in fields}
