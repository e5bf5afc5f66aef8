"""What is changed in vllm-ascend, when one of its modules is imported in any process: all is listed here."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import torch

from torch_npu import generations, npu, triton_kernels

KEEP_FLOAT32 = "EMULATED_NPU_MLA_FLOAT32"
"""Set to 1, MLA's prefill stays in float32. Otherwise it casts queries, keys and values to bfloat16, whatever the type
of the model: the attention operator takes nothing else on a device. Then no engine equals a float32 reference."""


@contextlib.contextmanager
def _already_there(module: torch.nn.Module, target: torch.device) -> Iterator[torch.nn.Module]:
    yield module


STAND_INS: dict[str, dict[str, Callable[..., Any]]] = {
    "vllm_ascend.worker.block_table": {"_compute_slot_mapping_kernel": triton_kernels.slot_mapping},
    "vllm_ascend.patch.worker.patch_process_weights_after_loading": {"device_loading_context": _already_there},
}
"""Module, name, stand-in. A Triton kernel that vllm-ascend has no other way for: there is no Triton for a CPU. And what
moves weights from the host to the device and back while they are processed: they call themselves the host's."""

CASTS = {
    "vllm_ascend.attention.mla_v1": (
        "need_dtype_convert = original_dtype != torch.bfloat16",
        "need_dtype_convert = False",
    )
}
"""Source lines that are replaced if `KEEP_FLOAT32` is set: module, the line, what comes in its place."""


BUILT_FOR = "vllm_ascend._build_info"
"""Says which generation of NPUs a build of vllm-ascend is for; the wheels on PyPI are for A2. It is made to be for the
chip that EMULATED_CANN_SOC names."""


def install() -> None:
    """Watches imports from now on. Raises RuntimeError when a module of the lists is imported already."""
    late = sorted(name for name in (*STAND_INS, *CASTS, BUILT_FOR) if name in sys.modules)
    if late:
        raise RuntimeError(f"the emulated torch_npu must be imported before {', '.join(late)}")
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        edited = name in CASTS and os.environ.get(KEEP_FLOAT32) == "1"
        if name not in STAND_INS and name != BUILT_FOR and not edited:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, name: str) -> CodeType | None:
        if name not in CASTS or os.environ.get(KEEP_FLOAT32) != "1":
            return super().get_code(name)
        line, replacement = CASTS[name]
        source = self.get_source(name)
        if source is None or source.count(line) != 1:
            raise ImportError(f"{KEEP_FLOAT32}: {name} does not have the line {line!r} once", name=name)
        return compile(source.replace(line, replacement), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ == BUILT_FOR:
            module.__dict__["__device_type__"] = generations.generation(npu.SOC_NAME).name
        for replaced, stand_in in STAND_INS.get(module.__name__, {}).items():
            if not hasattr(module, replaced):
                raise ImportError(f"{module.__name__} has no {replaced}", name=module.__name__)
            setattr(module, replaced, stand_in)
