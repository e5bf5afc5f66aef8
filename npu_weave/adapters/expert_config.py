"""`expert_cfg.json`: which experts an adapter tunes, as the ESFT repository writes it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from npu_weave.adapters.json_file import read_json_object
from npu_weave.adapters.printable import printable, printable_path
from npu_weave.errors import AdapterError, AdapterFileError

EXPERT_CONFIG_NAME = "expert_cfg.json"
MAX_CONFIG_BYTES = 1 << 20
_LAYER = re.compile(r"0|[1-9][0-9]{0,5}")


class WeaveMetadata(BaseModel):
    """What `npu-weave adapter extract` notes about an adapter's origin."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    base_fingerprint: str | None = None


class ExpertConfig(BaseModel):
    """The contents of `expert_cfg.json`.

    Attributes:
        experts: model layer index (as a decimal string) to expert ids.
        shared_experts: whether shared experts are tuned; only False can be served.
        non_expert_modules: whether anything else is tuned; only False can be served.
        npu_weave: origin of the adapter, if noted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    experts: dict[str, list[int]]
    shared_experts: bool = False
    non_expert_modules: bool = False
    npu_weave: WeaveMetadata = Field(default_factory=WeaveMetadata)

    def expert_sets(self) -> dict[int, tuple[int, ...]]:
        """Layer to its expert ids, both ascending; layers without experts left out."""
        sets = {int(layer): tuple(sorted(ids)) for layer, ids in self.experts.items() if ids}
        return dict(sorted(sets.items()))

    def to_json(self) -> dict[str, Any]:
        """The config as JSON values, without empty metadata."""
        return self.model_dump(exclude_none=True)


def read_expert_config(directory: Path) -> ExpertConfig:
    """Reads and checks `expert_cfg.json` in `directory`, as far as that goes without the base model.

    Raises:
        AdapterError: EXPERT_CONFIG_MISSING, or a code of `read_expert_config_file`.
    """
    try:
        return read_expert_config_file(directory / EXPERT_CONFIG_NAME)
    except AdapterFileError as reason:
        if reason.code != "FILE_MISSING":
            raise
        raise AdapterError(
            "EXPERT_CONFIG_MISSING",
            printable_path(directory),
            expected=f"{EXPERT_CONFIG_NAME} in it",
            got="no such file",
        ) from None


def read_expert_config_file(path: Path) -> ExpertConfig:
    """The same for a file of any name.

    Raises:
        AdapterError: EXPERT_CONFIG_INVALID, ADAPTER_MODULES_UNSUPPORTED, ADAPTER_EXPERT_REPEATED,
            ADAPTER_EXPERT_RANGE, ADAPTER_EMPTY, or a JSON_* or FILE_* code.
    """
    try:
        config = ExpertConfig.model_validate(read_json_object(path, limit=MAX_CONFIG_BYTES))
    except ValidationError as reason:
        first = reason.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AdapterError(
            "EXPERT_CONFIG_INVALID",
            printable_path(path),
            expected="the ESFT layout",
            got=f"{printable(where)}: {first['msg']}",
        ) from None
    _check(config, path)
    return config


def _check(config: ExpertConfig, path: Path) -> None:
    for field in ("shared_experts", "non_expert_modules"):
        if getattr(config, field):
            raise AdapterError(
                "ADAPTER_MODULES_UNSUPPORTED",
                printable_path(path),
                expected=f"{field}: false",
                got=f"{field}: true",
                remedy="train routed experts only; other weights are shared by all adapters",
            )
    for layer, ids in config.experts.items():
        if _LAYER.fullmatch(layer) is None:
            raise AdapterError(
                "EXPERT_CONFIG_INVALID",
                printable_path(path),
                expected="layer indices as decimal strings",
                got=repr(layer[:80]),
            )
        negative = [expert for expert in ids if expert < 0]
        if negative:
            raise AdapterError(
                "ADAPTER_EXPERT_RANGE", f"{path} layer {layer}", expected="ids from 0 on", got=str(negative[0])
            )
        repeated = sorted(expert for expert, times in Counter(ids).items() if times > 1)
        if repeated:
            raise AdapterError(
                "ADAPTER_EXPERT_REPEATED", f"{path} layer {layer}", expected="each id once", got=str(repeated[:5])
            )
    if not any(config.experts.values()):
        raise AdapterError(
            "ADAPTER_EMPTY",
            printable_path(path),
            expected="at least one tuned expert",
            got="none",
            remedy="serve the base model",
        )
