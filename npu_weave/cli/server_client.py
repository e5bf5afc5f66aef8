"""How commands ask a running server."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from npu_weave.errors import ServerError

URL = "http://localhost:8000"
API_KEY = "VLLM_API_KEY"
"""Environment variable with the key of a server that wants one."""
_SECONDS = 10.0


def ask(url: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = _SECONDS) -> tuple[str, str]:
    """GET, or POST `body` as JSON.

    Args:
        seconds: to wait for the answer.

    Returns:
        The whole URL, and the text of the answer.

    Raises:
        ServerError: SERVER_UNREACHABLE; SERVER_REFUSED, with the server's words.
    """
    if not url.startswith(("http://", "https://")):
        raise ServerError("SERVER_UNREACHABLE", url, expected="a URL", remedy=f"write it as {URL}")
    place = f"{url.rstrip('/')}{path}"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(API_KEY):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(place, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return place, answer.read().decode()
    except urllib.error.HTTPError as error:
        raise _refused(place, error) from error
    except (OSError, ValueError) as error:
        raise ServerError(
            "SERVER_UNREACHABLE", place, expected="a running server", got=str(error), remedy="check host and port"
        ) from error


def status_of(error: ServerError) -> int | None:
    """The status of HTTP that the server refused with."""
    cause = error.__cause__
    return cause.code if isinstance(cause, urllib.error.HTTPError) else None


def _refused(place: str, error: urllib.error.HTTPError) -> ServerError:
    text = error.read().decode(errors="replace")
    try:
        answer = json.loads(text)
        words = str(answer["error"]["message"] if "error" in answer else answer["detail"])
    except (ValueError, KeyError, TypeError):
        words = text.strip() or error.reason
    remedy = f"put the server's key into {API_KEY}" if error.code == 401 else "see what it says"
    return ServerError("SERVER_REFUSED", place, expected="success", got=f"status {error.code}: {words}", remedy=remedy)
