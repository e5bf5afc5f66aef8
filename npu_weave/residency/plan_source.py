"""Adapters to plan for, read from expert configurations; no weights are needed beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from npu_weave.adapters.expert_config import EXPERT_CONFIG_NAME
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.paths import validate_adapter_name
from npu_weave.errors import AdapterError, AdapterNotFoundError, ConfigError
from npu_weave.residency.footprint_source import read_expert_sets
from npu_weave.residency.plan import NamedSets

_PREFIX = Path(EXPERT_CONFIG_NAME).stem


def read_kinds(values: Iterable[str], geometry: MoEGeometry) -> tuple[NamedSets, ...]:
    """Name and tuned experts of every adapter that `values` name, each ``NAME=PATH`` or ``PATH``.

    A path is an expert configuration, an adapter's directory, or a directory of either; names follow from the files
    where none is given. Repeated names get a number.

    Raises:
        ConfigError: PLAN_ARGUMENT, a name is given to a directory of several adapters.
        AdapterNotFoundError: ADAPTER_NOT_FOUND.
        AdapterError: EXPERT_CONFIG_MISSING, or the configuration does not fit `geometry`.
    """
    kinds: dict[str, NamedSets] = {}
    for value in values:
        for name, path in _named(value):
            number, unique = 1, name
            while unique in kinds:
                number += 1
                unique = f"{name}-{number}"
            kinds[unique] = (unique, read_expert_sets(path, geometry))
    return tuple(kinds.values())


def _named(value: str) -> Iterator[tuple[str, Path]]:
    name, separator, rest = value.partition("=")
    if not separator or Path(value).exists():
        name, rest = "", value
    else:
        validate_adapter_name(name)
    path = Path(rest)
    if not path.exists():
        raise AdapterNotFoundError(
            "ADAPTER_NOT_FOUND", rest, expected="an expert configuration or a directory", got="nothing"
        )
    found = [path] if path.is_file() else _configs(path)
    if name and len(found) > 1:
        raise ConfigError(
            "PLAN_ARGUMENT", f"--adapter {value}", expected="one adapter for one name", got=f"{len(found)} in {path}"
        )
    for config in found:
        yield name or _name(config), config


def _configs(directory: Path) -> list[Path]:
    """The configurations in an adapter's directory or in a directory of adapters and configurations."""
    if (directory / EXPERT_CONFIG_NAME).exists():
        return [directory / EXPERT_CONFIG_NAME]
    files = sorted(directory.glob(f"{_PREFIX}*.json")) or sorted(directory.glob("*.json"))
    found = [*sorted(directory.glob(f"*/{EXPERT_CONFIG_NAME}")), *files]
    if not found:
        raise AdapterError(
            "EXPERT_CONFIG_MISSING", str(directory), expected=f"{EXPERT_CONFIG_NAME} in it or below", got="no such file"
        )
    return found


def _name(config: Path) -> str:
    if config.name == EXPERT_CONFIG_NAME:
        return config.resolve().parent.name
    return config.stem.removeprefix(_PREFIX).strip("_-") or config.stem
