"""Options of HCCL's process groups."""

from __future__ import annotations

from typing import Any


class ProcessGroupHCCL:
    """Of the real library; here, gloo's groups take its place, which have no options."""

    class Options:
        """Takes what vllm-ascend sets: the name of the group and sizes of buffers."""

        def __init__(self) -> None:
            self.hccl_config: dict[str, Any] = {}

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("torch_npu._C._distributed_c10d.ProcessGroupHCCL is not emulated: use torch.distributed")
