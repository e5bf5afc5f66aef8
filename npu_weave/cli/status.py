"""`npu-weave status` and `npu-weave top`: a running server's adapters, as its metrics tell them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from npu_weave.cli import server_client
from npu_weave.cli.reporting import human_bytes, print_json, reported_errors
from npu_weave.errors import ServerError

_COUNTS = {"requests": "requests", "prompt_tokens": "prompt tokens", "generated_tokens": "generated tokens"}
SNAPSHOT_TIME = "npu_weave:snapshot_time_seconds"
_TOTALS = {
    "vllm:num_gpu_loaded_lora_adapters": "in device slots",
    "vllm:max_gpu_lora_adapters": "device slots",
    "vllm:num_cpu_loaded_lora_adapters": "on the host alone",
    "npu_weave:adapters_draining": "draining",
    "npu_weave:adapter_loads_under_way": "loads under way",
    "npu_weave:requests_held": "requests that wait for a load",
    "npu_weave:requests_queued": "requests that wait for others of their adapter",
    "npu_weave:expert_bytes": "mapped",
    "npu_weave:host_cache_bytes": "host cache",
}


class Status(NamedTuple):
    """What a server says of its adapters.

    Attributes:
        adapters: name -> level (``gpu``: in a device slot, ``cpu``: on the host), pinned, and counts.
        totals: metric -> value, summed over ranks.
        failures: error code -> loads that failed with it.
    """

    adapters: Mapping[str, Mapping[str, Any]]
    totals: Mapping[str, float]
    failures: Mapping[str, int]


def status(
    url: Annotated[str, typer.Argument(help="Where the server listens.")] = server_client.URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show which adapters a running server has, and what was asked of them."""
    with reported_errors(as_json):
        found = read_status(url)
    if as_json:
        print_json(found._asdict())
        return
    Console(highlight=False).print(_shown(found, None, 0))


def top(
    url: Annotated[str, typer.Argument(help="Where the server listens.")] = server_client.URL,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5)] = 5.0,
) -> None:
    """Show a running server's adapters again and again, with requests and tokens a second."""
    with reported_errors(False), Live(console=Console(highlight=False), screen=False, auto_refresh=False) as live:
        before, then = read_status(url), time.monotonic()
        live.update(_shown(before, None, 0), refresh=True)
        while True:
            time.sleep(every)
            now, found = time.monotonic(), read_status(url)
            live.update(_shown(found, before, now - then), refresh=True)
            before, then = found, now


def read_status(url: str) -> Status:
    """Ask a server.

    Raises:
        ServerError: SERVER_UNREACHABLE; SERVER_NOT_OURS, it serves no adapters with npu-weave.
    """
    place, answer = server_client.ask(url, "/metrics")
    return parse_status(answer, place)


def parse_status(text: str, place: str) -> Status:
    """From Prometheus' text form. Raises ServerError SERVER_NOT_OURS."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    adapters: dict[str, dict[str, Any]] = {}
    totals: dict[str, float] = {}
    failures: dict[str, int] = {}
    for name, labels, value, *_ in samples:
        if name == SNAPSHOT_TIME:
            totals[name] = value
        elif name in _TOTALS:
            totals[name] = totals.get(name, 0.0) + value
        elif name == "npu_weave:adapter_load_failures_total":
            failures[labels["code"]] = int(value)
        elif name == "vllm:lora_adapter_loaded" and labels["rank"] == "0":
            entry = adapters.setdefault(labels["adapter_name"], {})
            # of two revisions of a name, while one drains, the better place is told
            if entry.get("level") != "gpu":
                entry.update(level=labels["level"], pinned=labels["pinned"] == "true")
        for count in _COUNTS:
            if name == f"npu_weave:adapter_{count}_total":
                adapters.setdefault(labels["adapter_name"], {})[count] = int(value)
    if "vllm:max_gpu_lora_adapters" not in totals:
        raise ServerError(
            "SERVER_NOT_OURS",
            place,
            expected="metrics of adapters",
            got="none",
            remedy="wait until the server is ready; it must be started with npu-weave serve",
        )
    return Status(dict(sorted(adapters.items())), totals, failures)


def _shown(found: Status, before: Status | None, seconds: float) -> Group:
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_column(style="dim", no_wrap=True)
    head.add_column()
    for metric, title in _TOTALS.items():
        value = int(found.totals.get(metric, 0))
        head.add_row(title, human_bytes(value) if metric.endswith("_bytes") else str(value))
    for code, count in found.failures.items():
        head.add_row("loads failed", f"{count} with {code}")
    table = Table(box=None, pad_edge=False)
    for column in ("adapter", "where", *_COUNTS.values()):
        table.add_column(column, justify="left" if column in ("adapter", "where") else "right")
    for name, adapter in found.adapters.items():
        places = {"gpu": "device", "cpu": "host"}
        where = places.get(adapter.get("level", ""), "-") + (", pinned" if adapter.get("pinned") else "")
        table.add_row(name, where, *(_count(name, key, adapter, before, seconds) for key in _COUNTS))
    return Group(head, "", table)


def _count(name: str, key: str, adapter: Mapping[str, Any], before: Status | None, seconds: float) -> str:
    total = adapter.get(key, 0)
    if before is None or seconds <= 0:
        return f"{total:,}"
    gained = total - before.adapters.get(name, {}).get(key, 0)
    return f"{total:,} ({max(gained, 0) / seconds:,.1f}/s)"
