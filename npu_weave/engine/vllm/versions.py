"""What differs between the versions of vLLM that are served. Everything else is the same in all of them."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True)
class VllmVersion:
    """One range of versions.

    Attributes:
        versions: which, as a specifier.
        devices: vLLM's device types on which answers were proved exact with it.
        whole_weight_operations: methods of EngineCore that read or write whole parameters.
        reloads_weights: whether its model runner can take new base weights (``reset_lora_state``).
        error_responses: the module of ``create_error_response``.
        request_checks: the module and the class whose ``_check_model`` every request goes through.
    """

    versions: str
    devices: tuple[str, ...]
    whole_weight_operations: tuple[str, ...]
    reloads_weights: bool
    error_responses: str
    request_checks: tuple[str, str]

    def includes(self, version: str) -> bool:
        """Whether `version` is one of them; the local part ("+cpu") does not matter."""
        return Version(version) in SpecifierSet(self.versions, prereleases=True)


_REQUEST_CHECKS = ("vllm.entrypoints.serve.engine.serving", "BaseServing")

_ASCEND = VllmVersion(
    versions=">=0.23,<0.24",
    devices=("npu",),
    whole_weight_operations=("save_sharded_state",),
    reloads_weights=False,
    error_responses="vllm.entrypoints.serve.utils.error_response",
    request_checks=("vllm.entrypoints.openai.engine.serving", "OpenAIServing"),
)

SUPPORTED = (
    _ASCEND,
    # vllm-ascend 0.26.0rc1 is made for it
    VllmVersion(**{**vars(_ASCEND), "versions": ">=0.26,<0.27", "request_checks": _REQUEST_CHECKS}),
    VllmVersion(
        versions=">=0.32,<0.33",
        devices=("cpu",),
        whole_weight_operations=("save_sharded_state", "compute_weight_checksums"),
        reloads_weights=True,
        error_responses="vllm.entrypoints.serve",
        request_checks=_REQUEST_CHECKS,
    ),
)


def supported_versions() -> str:
    """The ranges, for people."""
    return " or ".join(version.versions for version in SUPPORTED)


def installed() -> VllmVersion | None:
    """What is known of the vLLM installed here; None when it is no supported version."""
    import vllm

    return next((version for version in SUPPORTED if version.includes(vllm.__version__)), None)


def assumed() -> VllmVersion:
    """`installed`, or the newest for a version that is none of ours: its patches are refused where that is wrong."""
    return installed() or SUPPORTED[-1]
