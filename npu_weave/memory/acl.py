"""The driver of Ascend NPUs, over the virtual memory calls of libascendcl."""

from __future__ import annotations

import torch

from npu_weave import _C
from npu_weave.memory import npu_tensor
from npu_weave.memory.native import NativeDriver, limit_of


class AclDriver(NativeDriver):
    """`Driver` for one NPU. libascendcl is opened here, not linked; pages have the device's minimum granularity.

    The content of a new page is undefined. ``torch_npu`` must have been imported, which initialises the runtime. A
    reservation has at most 128 GiB.

    Args:
        index: the NPU, as in ``torch.device("npu", index)``.
        limit_bytes: physical memory that may be created; None: as much as the NPU has.

    Raises DriverError ``DRIVER_UNAVAILABLE`` when there is no libascendcl, or no such NPU.
    """

    def __init__(self, index: int = 0, limit_bytes: int | None = None) -> None:
        super().__init__(
            _C.acl_driver(index, limit_of(limit_bytes)),
            # the name of torch's slot for other devices, which torch_npu renames to "npu"
            torch.device("privateuseone", index),
            "install CANN and source its set_env.sh, and check that npu-smi info lists the NPU",
        )

    def fence(self) -> None:
        """See `Driver.fence`. Work that torch_npu has queued on the host and not yet given to the device counts too."""
        npu_tensor.empty_task_queue()
        super().fence()

    def _tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        made = _C.npu_memory_tensor(address, nbytes, owner, self.device)
        return npu_tensor.from_pointer(address, nbytes, owner, self.device) if made is None else made
