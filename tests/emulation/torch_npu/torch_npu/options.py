"""Options of torch_npu that code here sets: whether a cast may give a tensor a format of the device's own."""

from __future__ import annotations

from collections.abc import Mapping

INTERNAL_FORMAT = "ALLOW_INTERNAL_FORMAT"

_values = {INTERNAL_FORMAT: "disable"}


def set_option(options: Mapping[str, str]) -> None:
    """torch_npu._C._npu_setOption. Raises RuntimeError for an option that is not emulated."""
    for name, value in options.items():
        if name not in _values or value not in ("enable", "disable"):
            raise RuntimeError(f"torch_npu._C._npu_setOption: {name}={value!r} is not emulated")
        _values[name] = value


def get_option(name: str) -> bytes | None:
    """torch_npu._C._npu_getOption."""
    return _values[name].encode() if name in _values else None


def internal_formats_allowed() -> bool:
    return _values[INTERNAL_FORMAT] == "enable"


class Config:
    """torch.npu.config, which can be written and, as with the real one, not read."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "allow_internal_format":
            raise AttributeError(f"torch.npu.config.{name} is not emulated")
        set_option({INTERNAL_FORMAT: "enable" if value else "disable"})
