"""What the engine core runs on each worker.

Failures come back as values (`WeaveError.to_dict`), never as exceptions: vLLM's message queue would hand an
exception of one call to the next one as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from npu_weave.errors import WeaveError

logger = init_logger("vllm.npu_weave.worker")


def _failures_as_values(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(worker: Any, *args: Any) -> Any:
        try:
            return call(_manager(worker), *args)
        except WeaveError as error:
            return error.to_dict()
        except Exception as error:  # anything else would reach the wrong caller; it is reported, not swallowed
            logger.exception("unexpected failure in %s", call.__name__)
            return WeaveError("WORKER_FAILED", call.__name__, got=f"{type(error).__name__}: {error}").to_dict()

    return wrapped


@_failures_as_values
def begin_load(
    manager: Any, revision: int, name: str, path: str, digest: str, identity: tuple[Any, ...] | None
) -> None:
    """`WeaveAdapterManager.begin_load`."""
    manager.begin_load(revision, name, path, digest, identity)


@_failures_as_values
def load_states(manager: Any) -> dict[int, dict[str, str]]:
    """`WeaveAdapterManager.load_states`: keys are revisions, so it is never mistaken for a failure."""
    states: dict[int, dict[str, str]] = manager.load_states()
    return states


@_failures_as_values
def commit_load(manager: Any, revision: int) -> tuple[str, bool]:
    """`WeaveAdapterManager.commit_load`."""
    fingerprint, more = manager.commit_load(revision)
    return fingerprint, more


@_failures_as_values
def publish_load(manager: Any, revision: int) -> str:
    """`WeaveAdapterManager.publish_load`."""
    return str(manager.publish_load(revision))


@_failures_as_values
def drop(manager: Any, revision: int) -> tuple[str, bool]:
    """`WeaveAdapterManager.drop`."""
    fingerprint, more = manager.drop(revision)
    return fingerprint, more


@_failures_as_values
def free_rows(manager: Any) -> tuple[str, bool]:
    """`WeaveAdapterManager.free_rows`."""
    fingerprint, more = manager.free_rows()
    return fingerprint, more


@_failures_as_values
def pin(manager: Any, revision: int) -> str:
    """`WeaveAdapterManager.pin`."""
    return str(manager.pin(revision))


@_failures_as_values
def begin_service(manager: Any) -> None:
    """`WeaveAdapterManager.begin_service`."""
    manager.begin_service()


@_failures_as_values
def memory(manager: Any) -> dict[str, int]:
    """`WeaveAdapterManager.memory`."""
    report: dict[str, int] = manager.memory()
    return report


@_failures_as_values
def host_cache(manager: Any) -> dict[str, int]:
    """`WeaveAdapterManager.host_cache`."""
    report: dict[str, int] = manager.host_cache()
    return report


@_failures_as_values
def status(manager: Any) -> dict[str, Any]:
    """`WeaveAdapterManager.status`."""
    report: dict[str, Any] = manager.status()
    return report


def _manager(worker: Any) -> Any:
    return worker.model_runner.lora_manager
