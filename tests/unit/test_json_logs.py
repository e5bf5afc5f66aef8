"""Log messages as JSON: each one line, errors with their fields; nothing changes unless it is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from npu_weave.errors import ConfigError, DriverError
from npu_weave.observability.json_logs import LOGGERS, VARIABLE, JsonFormatter, configure_logs


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """As they were, afterwards."""
    before = [
        (logger, list(logger.handlers), logger.propagate, logger.level) for logger in map(logging.getLogger, LOGGERS)
    ]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def made() -> list[logging.Handler]:
    found = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
    return [handler for handler in found if isinstance(handler.formatter, JsonFormatter)]


def test_messages_are_json_and_errors_carry_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs({VARIABLE: "json"})
    configure_logs({VARIABLE: "json"})
    assert len(made()) == len(LOGGERS), "once each"
    logger = logging.getLogger("vllm.npu_weave.core")
    error = DriverError("DRIVER_FAULT", "page 3", expected="a page", got="two\nlines")
    logger.info("adapter %r dropped", "law\n")
    logger.error("request %s refused: %s", "r1", error)
    try:
        raise error
    except DriverError:
        logging.getLogger("npu_weave.residency.loader").exception("it failed")
    plain, refused, failed = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert plain["message"] == "adapter 'law\\n' dropped" and plain["level"] == "INFO" and "error" not in plain
    assert plain["logger"] == "vllm.npu_weave.core" and plain["time"].endswith("+00:00")
    assert refused["error"] == error.to_dict()
    assert failed["error"]["code"] == "DRIVER_FAULT" and "Traceback" in failed["traceback"]


@pytest.mark.parametrize("environment", [{}, {VARIABLE: "text"}])
def test_unless_asked_nothing_changes(environment: dict[str, str]) -> None:
    configure_logs(environment)
    assert not made()


def test_another_form_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        configure_logs({VARIABLE: "xml"})
    assert caught.value.code == "LOG_FORMAT_INVALID" and caught.value.remedy
