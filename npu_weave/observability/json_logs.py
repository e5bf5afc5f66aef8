"""Messages as JSON, one object a line, for systems that collect logs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from npu_weave.errors import ConfigError, WeaveError

VARIABLE = "NPU_WEAVE_LOG"
"""Environment variable: ``json``, or ``text`` (vLLM's format, the default)."""

LOGGERS = ("vllm.npu_weave", "npu_weave")
"""Whose messages, and those of the loggers below them."""


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger``, ``process``, ``message``; where there is one, ``error``
    (`WeaveError.to_dict`) and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        error = _error_of(record)
        if error is not None:
            line["error"] = error.to_dict()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(environment: Mapping[str, str] = os.environ) -> None:
    """Have our messages written as the environment asks, on stderr. Mutates the loggers.

    Raises:
        ConfigError: LOG_FORMAT_INVALID.
    """
    asked = environment.get(VARIABLE, "text")
    if asked not in ("json", "text"):
        raise ConfigError(
            "LOG_FORMAT_INVALID", VARIABLE, expected="json or text", got=asked, remedy="correct it, or unset it"
        )
    for name in LOGGERS:
        logger = logging.getLogger(name)
        ours = [handler for handler in logger.handlers if isinstance(handler.formatter, JsonFormatter)]
        if asked == "json" and not ours:
            handler = logging.StreamHandler()
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
            logger.propagate = False
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)


def _error_of(record: logging.LogRecord) -> WeaveError | None:
    args = record.args if isinstance(record.args, tuple) else ()
    raised = record.exc_info[1] if record.exc_info else None
    return next((each for each in (*args, raised) if isinstance(each, WeaveError)), None)
