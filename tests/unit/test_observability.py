"""Snapshots as Prometheus metrics, and back to people through `npu-weave status`: with the real client library."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from npu_weave.cli.main import app
from npu_weave.cli.status import parse_status
from npu_weave.errors import ServerError
from npu_weave.observability.histogram import BOUNDS, Histogram, cumulative
from npu_weave.observability.prometheus import AdapterCollector

ROOT = Path(__file__).parents[2]
DOCS, DASHBOARD = ROOT / "docs" / "operations.md", ROOT / "deploy" / "grafana" / "npu-weave.json"


def revision(name: str, number: int, **others: Any) -> dict[str, Any]:
    return {"name": name, "revision": number, "digest": f"d{number}", "staged": True, "retired": False, "requests": 0,
            **others}  # fmt: skip


def worker(**others: Any) -> dict[str, Any]:
    return {"device": [1], "pinned": [1], "pages": 3, "mapped_bytes": 6 << 20, "evictions": 2, "host_cache_adapters": 1,
            "host_cache_bytes": 500, "disk_reads": 4, **others}  # fmt: skip


def snapshot() -> dict[str, Any]:
    seconds, drains = Histogram(), Histogram()
    for taken in (0.05, 0.2, 1000.0):
        seconds.observe(taken)
    loads = {"begun": 5, "succeeded": 3, "failed": 2, "failures": {"ROWS_EXHAUSTED": 2}, "under_way": 1,
             "requests_held": 7, "requests_queued": 8, "seconds": seconds.report()}  # fmt: skip
    adapters = [
        revision("math", 1),
        revision("law", 2),
        revision("law", 3, retired=True, requests=2),
        revision("cold", 4, staged=False),
    ]
    served = {"math": {"requests": 2, "prompt_tokens": 30, "generated_tokens": 40}}
    return {"at": 1e9, "slots": 2, "adapters": adapters, "loads": loads, "drains": drains.report(),
            "workers": [worker(), worker(device=[1, 2], pages=4)], "served": served}  # fmt: skip


def exposed(made: dict[str, Any] | None) -> str:
    registry = CollectorRegistry()
    collector = AdapterCollector("base")
    registry.register(collector)
    collector.snapshot = made
    return generate_latest(registry).decode()


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            assert labels.pop("model_name") == "base"
            found[name, frozenset(labels.items())] = value
    return found


def test_durations_fall_into_the_bucket_whose_bound_they_do_not_exceed() -> None:
    histogram = Histogram()
    for seconds in (BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1] + 1):
        histogram.observe(seconds)
    report = histogram.report()
    assert [report["counts"][at] for at in (0, 1, -1)] == [1, 1, 1] and sum(report["counts"]) == 3
    buckets = dict(cumulative(report["counts"]))
    assert buckets["0.05"] == 1 and buckets["0.1"] == 2 and buckets["300.0"] == 2 and buckets["+Inf"] == 3
    assert report["sum"] == pytest.approx(BOUNDS[0] * 2.01 + BOUNDS[-1] + 1)


def test_routers_find_where_adapters_are() -> None:
    found = values(exposed(snapshot()))

    def loaded(name: str, level: str, pinned: str, rank: str) -> float | None:
        labels = {"adapter_name": name, "level": level, "pinned": pinned, "rank": rank}
        return found.get(("vllm:lora_adapter_loaded", frozenset(labels.items())))

    assert loaded("math", "gpu", "true", "0") == 1 and loaded("math", "gpu", "true", "1") == 1
    assert loaded("law", "cpu", "false", "0") == 1 and loaded("law", "gpu", "false", "1") == 1
    assert not any("cold" in dict(labels).values() for _, labels in found), "not in memory"
    none: frozenset[tuple[str, str]] = frozenset()
    assert found["vllm:max_gpu_lora_adapters", none] == 2
    assert found["vllm:num_gpu_loaded_lora_adapters", none] == 1
    assert found["vllm:num_cpu_loaded_lora_adapters", none] == 2
    assert found["vllm:lora_adapter_load_seconds_count", none] == 3


def test_loads_memory_and_requests_are_told() -> None:
    found = values(exposed(snapshot()))

    def value(name: str, **labels: str) -> float:
        return found[f"npu_weave:{name}", frozenset(labels.items())]

    assert value("adapter_loads_total", outcome="succeeded") == 3
    assert value("adapter_load_failures_total", code="ROWS_EXHAUSTED") == 2
    assert value("adapter_loads_under_way") == 1 and value("requests_held") == 7
    assert value("requests_queued") == 8
    assert value("adapters_draining") == 1 and value("adapter_drain_seconds_count") == 0
    assert value("expert_pages", rank="0") == 3 and value("expert_pages", rank="1") == 4
    assert value("expert_bytes", rank="0") == 6 << 20 and value("adapter_evictions_total", rank="0") == 2
    assert value("host_cache_bytes", rank="1") == 500 and value("adapter_disk_reads_total", rank="1") == 4
    assert value("adapter_requests_total", adapter_name="math") == 2
    assert value("adapter_prompt_tokens_total", adapter_name="math") == 30
    assert value("adapter_generated_tokens_total", adapter_name="math") == 40


def test_the_documentation_names_every_metric_and_no_other() -> None:
    exposed_names = {family.name for family in text_string_to_metric_families(exposed(snapshot()))}
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = {
        name.removesuffix("_total") for row in rows for name in re.findall(r"`((?:vllm|npu_weave):\w+)`", row)
    }
    assert documented == exposed_names


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"]
             for name in re.findall(r"(?:vllm|npu_weave):\w+", target["expr"])}  # fmt: skip
    samples = {name for name, _ in values(exposed(snapshot()))}
    assert len(panels) == 9 and asked <= samples
    for target in (target for panel in panels for target in panel["targets"]):
        labels = re.findall(r"by \((\w+)\)", target["expr"])
        assert set(labels) <= {"adapter_name", "code", "le"} and target["expr"].count("(") == target["expr"].count(")")


def test_nothing_is_said_before_there_is_a_snapshot() -> None:
    assert exposed(None) == ""


def test_status_is_what_the_metrics_say() -> None:
    status = parse_status(exposed(snapshot()), "here")
    assert status.adapters == {
        "law": {"level": "cpu", "pinned": False},
        "math": {"level": "gpu", "pinned": True, "requests": 2, "prompt_tokens": 30, "generated_tokens": 40},
    }
    assert status.totals["npu_weave:expert_bytes"] == 12 << 20 and status.failures == {"ROWS_EXHAUSTED": 2}


def test_another_server_is_told_apart() -> None:
    with pytest.raises(ServerError) as caught:
        parse_status("# HELP x y\n# TYPE x gauge\nx 1.0\n", "here")
    assert caught.value.code == "SERVER_NOT_OURS"


@pytest.fixture
def server() -> Iterator[str]:
    """A server with these metrics; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(exposed(snapshot()).encode())

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()


def test_the_command_prints_it(server: str) -> None:
    text = CliRunner().invoke(app, ["status", server]).stdout
    assert "ROWS_EXHAUSTED" in text and "12.0 MiB" in text
    line = next(line for line in text.splitlines() if line.startswith("math"))
    assert line.split() == ["math", "device,", "pinned", "2", "30", "40"]
    made = json.loads(CliRunner().invoke(app, ["status", server, "--json"]).stdout)
    assert made["adapters"]["law"]["level"] == "cpu"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "file:///etc/passwd", "nonsense"])
def test_nobody_there(url: str) -> None:
    result = CliRunner().invoke(app, ["status", url, "--json"])
    assert result.exit_code == 10 and json.loads(result.stdout)["error"]["code"] == "SERVER_UNREACHABLE"
