"""`npu-weave load` and `npu-weave unload`: adapters of a running server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from npu_weave.cli import server_client
from npu_weave.cli.reporting import human_bytes, print_fields, print_json, reported_errors
from npu_weave.cli.status import SNAPSHOT_TIME, Status, read_status
from npu_weave.errors import ServerError

Name = Annotated[str, typer.Argument(help="Name under which requests ask for the adapter.")]
Url = Annotated[str, typer.Option(help="Where the server listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

_LOAD_SECONDS = 3600.0
_LOOK_SECONDS = 0.5


def load(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Directory of the adapter, as the server sees it.")],
    url: Url = server_client.URL,
    as_json: AsJson = False,
) -> None:
    """Put an adapter into service, or point its name at other content; requests in flight finish on the old.

    Returns when it is in service. Nothing happens when the name stands for just this content already. The server must
    allow it (`npu-weave serve --adapter-root DIR`).
    """
    with reported_errors(as_json):
        begun = time.monotonic()
        place = str(path.expanduser().absolute())
        _administer(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": place, "load_inplace": True})
        taken = time.monotonic() - begun
    if as_json:
        print_json({"adapter": name, "in_service": True, "seconds": round(taken, 3)})
    else:
        print_fields(name, {"in service": f"after {taken:.1f} s", "path": place})


def unload(
    name: Name,
    url: Url = server_client.URL,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until its requests end.", min=0)] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Take an adapter out of service, wait until its last request has ended, and show the memory that came back.

    No new request is taken at once; those in flight finish (`npu-weave serve --drain-timeout` limits that on the
    server). When they have not ended in time it fails, and the adapter leaves memory all the same when they do.
    """
    with reported_errors(as_json):
        before, begun = read_status(url), time.monotonic()
        there = _unloaded(url, name)
        after = _drained(url, name, begun, timeout)
        taken = time.monotonic() - begun
    bytes_before, bytes_after = (int(each.totals.get("npu_weave:expert_bytes", 0)) for each in (before, after))
    if as_json:
        found = {"adapter": name, "was_in_service": there, "seconds": round(taken, 3)}
        print_json({**found, "mapped_before": bytes_before, "mapped_after": bytes_after})
        return
    print_fields(
        name,
        {
            "in service": "no more" if there else "was not",
            "drained": f"after {taken:.1f} s",
            "mapped": f"{human_bytes(bytes_after)}, before {human_bytes(bytes_before)}",
        },
    )


def _administer(url: str, path: str, body: dict[str, object]) -> None:
    try:
        server_client.ask(url, path, body, seconds=_LOAD_SECONDS)
    except ServerError as error:
        # of the route; a missing adapter is told with its name
        if error.got in ("status 404: Not Found", "status 405: Method Not Allowed"):
            raise ServerError(
                "SERVER_READ_ONLY",
                url,
                expected="a server that allows loading and unloading",
                got=error.got,
                remedy="start it with --adapter-root DIR; below DIR adapters may lie then",
            ) from error
        raise


def _unloaded(url: str, name: str) -> bool:
    """Whether there was anything to take out of service."""
    try:
        _administer(url, "/v1/unload_lora_adapter", {"lora_name": name})
    except ServerError as error:
        if server_client.status_of(error) == 404:
            return False
        raise
    return True


def _drained(url: str, name: str, begun: float, timeout: float) -> Status:
    """What the server says when nothing of the adapter is in memory any more.

    Raises:
        ServerError: DRAIN_TIMEOUT.
    """
    seen_before = read_status(url).totals[SNAPSHOT_TIME]
    while (found := read_status(url)).totals[SNAPSHOT_TIME] == seen_before or name in _in_memory(found):
        if time.monotonic() - begun > timeout and found.totals[SNAPSHOT_TIME] != seen_before:
            raise ServerError(
                "DRAIN_TIMEOUT",
                name,
                expected=f"its requests to end within {timeout:g} s",
                got="requests that go on",
                remedy="wait longer, or serve with --drain-timeout; it takes no new requests",
            )
        time.sleep(_LOOK_SECONDS)
    return found


def _in_memory(found: Status) -> set[str]:
    return {name for name, adapter in found.adapters.items() if "level" in adapter}
