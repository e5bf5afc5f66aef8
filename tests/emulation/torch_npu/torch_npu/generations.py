"""Generations of NPUs, by the names of their chips."""

from __future__ import annotations

from typing import NamedTuple


class Generation(NamedTuple):
    """One generation.

    Attributes:
        name: vllm-ascend's word for it.
        soc_version: torch_npu's number for a chip of it.
    """

    name: str
    soc_version: int


_BY_CHIP = {"Ascend910B": Generation("A2", 220), "Ascend910_93": Generation("A3", 250)}


def generation(chip: str) -> Generation:
    """The generation of `chip`, e.g. ``Ascend910B1`` or ``Ascend910_9391``. Raises ValueError for any other."""
    for prefix, found in _BY_CHIP.items():
        if chip.startswith(prefix):
            return found
    raise ValueError(f"EMULATED_CANN_SOC={chip}: emulated are chips that begin with {' or '.join(_BY_CHIP)}")


def soc_version(chip: str) -> int:
    """What torch.npu.get_soc_version answers on `chip`."""
    return generation(chip).soc_version
