"""Calls of the runtime."""

from __future__ import annotations


def memcpy(*_: object) -> int:
    """Of sleep mode only. Raises RuntimeError."""
    raise RuntimeError("acl.rt.memcpy is not emulated: there is no sleep mode")
