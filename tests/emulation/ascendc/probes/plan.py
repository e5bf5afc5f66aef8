"""The plan of one vector instruction (probe.h), and which elements such an instruction reaches, computed here anew."""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass, replace

import numpy as np
import torch
from emulation.ascendc.launch import CoreCounters, EmulatedKernels, updates

BLOCK_BYTES = 32
REPEAT_BYTES = 256


class Form(enum.IntEnum):
    """How an instruction is called."""

    COUNT = 0
    MASK = 1
    BITS = 2
    REGISTER = 3


# The numbers that probe.h gives the types; bfloat16 travels as its bits and is named outright.
TYPES = {np.float32: 0, np.float16: 1, np.int32: 2, np.int16: 3, np.uint32: 4, np.uint16: 5, np.int64: 7, np.uint8: 8}
BFLOAT16 = 6


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("op", "type", "to_type", "form", "mode", "count", "repeats")),
        *((name, ctypes.c_uint64) for name in ("low", "high")),
        *((name, ctypes.c_uint32) for name in ("dst_block", "src_block", "src1_block")),
        *((name, ctypes.c_uint32) for name in ("dst_repeat", "src_repeat", "src1_repeat")),
        ("scalar", ctypes.c_float),
        ("bytes", ctypes.c_uint32 * 4),
    )


@dataclass(frozen=True)
class Plan:
    """Strides in blocks of 32 bytes. `mode` is a rounding mode, a comparison, an order..., as the kernel has it."""

    op: int = 0
    type: int = 0
    to_type: int = 0
    form: Form = Form.COUNT
    mode: int = 0
    count: int = 0
    repeats: int = 0
    low: int = 0
    high: int = 0
    dst_block: int = 1
    src_block: int = 1
    src1_block: int = 1
    dst_repeat: int = 8
    src_repeat: int = 8
    src1_repeat: int = 8
    scalar: float = 0.0

    def of(self, dtype: type[np.generic]) -> Plan:
        return replace(self, type=TYPES[dtype])

    def lanes(self, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
        """(repeat, lane) of each active lane, for operands of `itemsize` bytes (of the widest, if they differ)."""
        width = REPEAT_BYTES // itemsize
        counter = self.form is Form.COUNT or (self.form is Form.REGISTER and self.mode == 1)
        if counter:
            every = np.arange(self.count if self.form is Form.COUNT else self.low)
            return every // width, every % width
        if self.form is Form.MASK:
            active = np.arange(min(self.low, width))
        else:
            bits = self.low | (self.high << 64)
            active = np.array([lane for lane in range(width) if bits >> lane & 1], dtype=np.int64)
        return np.repeat(np.arange(self.repeats), len(active)), np.tile(active, self.repeats)

    def reached(self, itemsize: int, block: int, repeat: int, widest: int | None = None) -> np.ndarray:
        """The element of an operand, with those strides, that each active lane stands for."""
        repeats, lanes = self.lanes(widest or itemsize)
        in_bytes = (repeats * repeat + lanes * itemsize // BLOCK_BYTES * block) * BLOCK_BYTES
        return (in_bytes + lanes * itemsize % BLOCK_BYTES) // itemsize


def run(kernels: EmulatedKernels, name: str, plan: Plan, *operands: np.ndarray) -> CoreCounters:
    """One core, all operands in place."""
    fields = {field: getattr(plan, field) for field, _ in _Plan._fields_ if field != "bytes"}
    packed = _Plan(**fields, bytes=(ctypes.c_uint32 * 4)(*(operand.nbytes for operand in operands)))
    (counters,) = kernels.launch(name, 1, *(updates(torch.from_numpy(operand)) for operand in operands), packed)
    return counters
