"""The settings of npu-weave: one frozen object, read from vLLM's ``--additional-config``.

    vllm serve BASE --enable-lora --max-loras 4 --additional-config '{"npu_weave": {"adapter_rows": 64}}'

Without the key ``npu_weave`` the plugin does nothing. An unknown field, a wrong type or a value out of range is
refused with `ConfigError`, never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, field_validator

from npu_weave.errors import ConfigError

KEY = "npu_weave"

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$", re.IGNORECASE)


class WeaveConfig(BaseModel):
    """Validated settings; see docs/quickstart.md for examples.

    Attributes:
        adapter_rows: rows of every MoE layer's virtual weight tensor set aside for adapters, beyond the base
            experts. Address space only: an unused row costs no memory. None takes as many as `max_loras` adapters
            that tune every expert would need, or the most the engine's kernel can address, whichever is less.
        adapter_memory: physical memory in bytes for adapter experts, per worker; also as text ("512MiB", "4GiB").
            It is taken at start, before the engine sizes its KV cache, and never exceeded. None takes memory as
            adapters come and gives it back as they go.
        host_cache: host memory in bytes, per worker, for adapters that were unloaded or had to make room: loading the
            same content again then needs no disk. Least recently used go first. None keeps as many as fit under
            vLLM's ``--max-cpu-loras`` beside those in service; 0 keeps none.
        catalog: where adapters are found by name when a request names one: a directory, or a URL that fsspec knows
            (``hf://organisation``, ``s3://bucket/adapters``). None serves only adapters that were loaded.
        catalog_cache: directory in which adapters of a catalogue at a URL are kept.
        catalog_cache_size: bytes that they may take there, also as text; the least recently used go first.
        pins: JSON file of adapter names and the content digests they must have; see `npu_weave.residency.pins`.
        allowed_roots: directories below which adapters may lie. None allows any path, and is refused while the
            engine accepts adapters over HTTP (VLLM_ALLOW_RUNTIME_LORA_UPDATING). With a catalogue its own place is
            among them.
        max_requests_per_adapter: requests of one adapter in the scheduler at once; more of them wait while those of
            others go on. None sets no limit.
        drain_timeout: seconds that requests may go on with an adapter that was unloaded or re-pointed; then they are
            ended with an error, and its memory is free. None lets every request finish.
        load_rest: how long a load rests while requests run, by how long it worked: what it leaves to them of a
            processor and of the memory's bandwidth, where these are short. 0 loads as fast as can be.
        verify_loads: read every row back after a load and compare it with what was to be written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_rows: StrictInt | None = Field(default=None, ge=1)
    adapter_memory: StrictInt | None = Field(default=None, ge=1)
    host_cache: StrictInt | None = Field(default=None, ge=0)
    catalog: StrictStr | None = Field(default=None, min_length=1)
    catalog_cache: Path = Path("~/.cache/npu-weave/adapters")
    catalog_cache_size: StrictInt = Field(default=64 << 30, ge=1)
    pins: Path | None = None
    allowed_roots: tuple[Path, ...] | None = None
    max_requests_per_adapter: StrictInt | None = Field(default=None, ge=1)
    drain_timeout: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    load_rest: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    verify_loads: StrictBool = True

    @property
    def roots(self) -> tuple[Path, ...] | None:
        """Directories below which adapters may lie; None allows any path."""
        if self.catalog is None:
            return self.allowed_roots
        place = self.catalog_cache if "://" in self.catalog else Path(self.catalog)
        return (*(self.allowed_roots or ()), place.expanduser().resolve())

    @field_validator("adapter_memory", "host_cache", "catalog_cache_size", mode="before")
    @classmethod
    def _parse_size(cls, value: object) -> object:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("allowed_roots")
    @classmethod
    def _resolve_roots(cls, value: tuple[Path, ...] | None) -> tuple[Path, ...] | None:
        if value is None:
            return None
        roots = tuple(root.expanduser().resolve() for root in value)
        for root in roots:
            if not root.is_dir():
                raise ValueError(f"{root} is not a directory")
        return roots


def parse_size(text: str) -> int:
    """Bytes from text like "4GiB" (binary units; a bare number is bytes).

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.match(text)
    unit = match[2].lower() if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f"not a size: {text!r} (use bytes, KiB, MiB, GiB or TiB)")
    return int(float(match[1]) * _UNITS[unit])


def config_from(additional_config: object) -> WeaveConfig | None:
    """The settings in vLLM's ``additional_config``, or None when npu-weave is not asked for.

    Raises:
        ConfigError: the value under ``npu_weave`` is not a valid set of settings.
    """
    if not isinstance(additional_config, Mapping) or KEY not in additional_config:
        return None
    return parse_config(additional_config[KEY])


def parse_config(value: object) -> WeaveConfig:
    """Validate one settings object (the value of the key ``npu_weave``).

    Raises:
        ConfigError: CONFIG_INVALID, naming each offending field.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            "CONFIG_INVALID",
            f"additional config key {KEY!r}",
            expected="an object of settings",
            got=json.dumps(value, default=str),
            remedy=f"write --additional-config '{{\"{KEY}\": {{}}}}' for the defaults",
        )
    try:
        return WeaveConfig.model_validate(dict(value))
    except ValidationError as error:
        raise _describe(error, value) from error


def _describe(error: ValidationError, value: Mapping[Any, Any]) -> ConfigError:
    problems = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
    return ConfigError(
        "CONFIG_INVALID",
        f"additional config key {KEY!r}",
        expected="only the fields " + ", ".join(WeaveConfig.model_fields),
        got="; ".join(problems),
        remedy=f"correct {json.dumps(dict(value), default=str)}",
    )
