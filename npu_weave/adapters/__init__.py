"""What an ESFT adapter is on disk: layout, validation, digests, conversion. No device, no engine."""

from npu_weave.adapters.adapter import Adapter, ExpertTensors, check_finite, open_adapter
from npu_weave.adapters.checkpoint import base_fingerprint, open_checkpoint
from npu_weave.adapters.extraction import extract
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.merging import merge
from npu_weave.adapters.paths import resolve_adapter_path, validate_adapter_name

__all__ = [
    "Adapter",
    "ExpertTensors",
    "MoEGeometry",
    "base_fingerprint",
    "check_finite",
    "extract",
    "merge",
    "open_adapter",
    "open_checkpoint",
    "resolve_adapter_path",
    "validate_adapter_name",
]
