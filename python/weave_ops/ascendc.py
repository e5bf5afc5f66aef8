"""The NPU backend: the compiled AscendC kernels where they are, else plain torch on the device.

Nothing is registered on import, for the kernels' library is linked to torch_npu: `load` is called once torch_npu is
there. Plain torch serves rerouting only, with two gathers; it reads no value on the host, so a graph can capture it,
and a slot or an id outside of expert_map is for the device to refuse.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from weave_ops.reference import check_reroute
from weave_ops.schema import LIBRARY

VARIABLE = "WEAVE_ASCENDC_LIBRARY"
"""Environment variable with the path of the library; without it, it is looked for beside this package."""
NAME = "libweave_ascendc.so"


def library() -> Path | None:
    """Where the compiled kernels are; None when they are nowhere.

    Raises FileNotFoundError when the variable names something that is not there.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if not Path(asked).is_file():
            raise FileNotFoundError(f"{VARIABLE}={asked}: there is no such library")
        return Path(asked)
    beside = Path(__file__).with_name(NAME)
    return beside if beside.is_file() else None


@functools.cache
def load() -> str:
    """Register the backend for NPU tensors. Does nothing the second time.

    Returns:
        What serves: ``ascendc`` or ``torch``.
    """
    path = library()
    if path is not None:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        return "ascendc"
    LIBRARY.impl("reroute", reroute, "PrivateUse1")  # type: ignore[no-untyped-call]
    LIBRARY.impl("reroute_", reroute_, "PrivateUse1")  # type: ignore[no-untyped-call]
    return "torch"


def reroute(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    """See `weave_ops.schema`."""
    check_reroute(topk_ids, token_slots, expert_map)
    lines = expert_map.index_select(0, token_slots[: topk_ids.shape[0]])
    return lines.gather(1, topk_ids.long()).to(topk_ids.dtype)


def reroute_(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> None:
    """See `weave_ops.schema`."""
    topk_ids.copy_(reroute(topk_ids, token_slots, expert_map))
