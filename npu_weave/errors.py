"""Errors of npu-weave: one class per kind of trouble, one stable code per case.

Every error names the thing it is about, what was expected, what was got and what to do about it.
Codes are part of the public interface: scripts and dashboards may match on them, so a code is never
reused for another meaning. docs/errors.md lists them all.
"""

from __future__ import annotations

from typing import Any, ClassVar


class WeaveError(Exception):
    """Base of all errors raised on purpose by npu-weave.

    Args:
        code: stable identifier in upper snake case, e.g. ``ADAPTER_TENSOR_SHAPE``.
        thing: what the error is about (a file, a tensor, a setting).
        expected: what would have been right.
        got: what was found.
        remedy: what the user can do.

    The exception pickles and round-trips through `to_dict`, so it crosses process boundaries as a value.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, thing: str, *, expected: str = "", got: str = "", remedy: str = "") -> None:
        self.code = code
        self.thing = thing
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(code, thing, expected, got, remedy)

    def __str__(self) -> str:
        parts = [f"[{self.code}] {self.thing}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        text = "; ".join(parts)
        return f"{text}. Remedy: {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__name__, self.to_dict()))

    def to_dict(self) -> dict[str, str]:
        """The error as plain strings (keys: kind, code, thing, expected, got, remedy)."""
        return {
            "kind": type(self).__name__,
            "code": self.code,
            "thing": self.thing,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
        }

    @staticmethod
    def from_dict(data: dict[str, str]) -> WeaveError:
        """Inverse of `to_dict`; an unknown kind becomes a plain `WeaveError`."""
        return _rebuild(data.get("kind", "WeaveError"), data)


class ConfigError(WeaveError):
    """A setting is malformed or contradicts another one."""

    exit_code = 2


class AdapterError(WeaveError):
    """An adapter on disk is not a valid ESFT adapter of this base model."""

    exit_code = 3


class AdapterNotFoundError(AdapterError):
    """No adapter lies at the given path."""


class AdapterPathError(AdapterError):
    """The path of an adapter is not allowed."""


class AdapterFileError(AdapterError):
    """A file of an adapter, or of a checkpoint it is made from or checked against, cannot be read or trusted."""


class CheckpointError(WeaveError):
    """A full checkpoint (base or tuned) cannot be read, or is not what the command needs."""

    exit_code = 8


class OutputError(WeaveError):
    """What a command should write cannot be written."""

    exit_code = 9


class CapacityError(WeaveError):
    """Not enough rows, pages or slots for what was asked."""

    exit_code = 4


class DriverError(WeaveError):
    """A call of a virtual-memory driver failed."""

    exit_code = 5


class UnsupportedError(WeaveError):
    """The engine or a setting of it cannot be served exactly, so it is refused."""

    exit_code = 6


class IntegrityError(WeaveError):
    """An invariant does not hold: a defect of npu-weave or of the hardware."""

    exit_code = 7


class ServerError(WeaveError):
    """A running server does not answer, or is not what the command needs."""

    exit_code = 10


_KINDS: dict[str, type[WeaveError]] = {
    kind.__name__: kind
    for kind in (
        WeaveError,
        ConfigError,
        AdapterError,
        AdapterNotFoundError,
        AdapterPathError,
        AdapterFileError,
        CheckpointError,
        OutputError,
        CapacityError,
        DriverError,
        UnsupportedError,
        IntegrityError,
        ServerError,
    )
}


def _rebuild(kind: str, data: dict[str, str]) -> WeaveError:
    return _KINDS.get(kind, WeaveError)(
        data["code"],
        data["thing"],
        expected=data.get("expected", ""),
        got=data.get("got", ""),
        remedy=data.get("remedy", ""),
    )
