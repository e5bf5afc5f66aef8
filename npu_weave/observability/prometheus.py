"""Metrics of adapters by their Prometheus names, read off the last snapshot of an engine.

Names that begin with ``vllm:`` are those that routers read to send requests where an adapter is (vLLM PR 54830,
llm-d-router PR 2792); ours begin with ``npu_weave:``. An adapter has series while it is in service, so their number is
bounded, however many names were ever asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from npu_weave.observability.histogram import cumulative

Snapshot = Mapping[str, Any]


class AdapterCollector(Collector):
    """Everything that /metrics says of adapters.

    Attributes:
        snapshot: the engine's last; nothing is said before there is one.
    """

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        if self.snapshot is None:
            return
        yield self._gauge("npu_weave:snapshot_time_seconds", "When this was so, since the epoch.", self.snapshot["at"])
        yield from self._residency(self.snapshot)
        yield from self._loads(self.snapshot)
        yield from self._workers(self.snapshot)
        yield from self._served(self.snapshot)

    def _residency(self, snapshot: Snapshot) -> Iterator[Metric]:
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "1 for each adapter in memory: level gpu in a device slot, cpu on the host.",
            labels=["model_name", "adapter_name", "level", "pinned", "rank"],
        )
        on_device = on_host = 0
        for rank, worker in enumerate(snapshot["workers"]):
            for adapter in snapshot["adapters"]:
                if not adapter["staged"]:
                    continue
                level = "gpu" if adapter["revision"] in worker["device"] else "cpu"
                pinned = str(adapter["revision"] in worker["pinned"]).lower()
                loaded.add_metric([self._model, adapter["name"], level, pinned, str(rank)], 1)
                if rank == 0:
                    on_device, on_host = on_device + (level == "gpu"), on_host + (level == "cpu")
        yield loaded
        yield self._gauge("vllm:num_gpu_loaded_lora_adapters", "Adapters in device slots.", on_device)
        yield self._gauge("vllm:num_cpu_loaded_lora_adapters", "Adapters on the host alone.", on_host)
        yield self._gauge("vllm:max_gpu_lora_adapters", "Device slots for adapters.", snapshot["slots"])

    def _loads(self, snapshot: Snapshot) -> Iterator[Metric]:
        loads = snapshot["loads"]
        yield self._histogram("vllm:lora_adapter_load_seconds", "From the call to being in service.", loads["seconds"])
        outcomes = self._counter("npu_weave:adapter_loads", "Loads that ended.", "outcome")
        for outcome in ("succeeded", "failed"):
            outcomes.add_metric([self._model, outcome], loads[outcome])
        yield outcomes
        failures = self._counter("npu_weave:adapter_load_failures", "Loads that failed, by error code.", "code")
        for code, count in loads["failures"].items():
            failures.add_metric([self._model, code], count)
        yield failures
        yield self._gauge("npu_weave:adapter_loads_under_way", "Loads under way.", loads["under_way"])
        yield self._gauge("npu_weave:requests_held", "Requests that wait for their adapter.", loads["requests_held"])
        yield self._gauge(
            "npu_weave:requests_queued", "Requests that wait for others of their adapter.", loads["requests_queued"]
        )
        yield self._histogram(
            "npu_weave:adapter_drain_seconds", "From leaving service to memory given back.", snapshot["drains"]
        )
        draining = sum(adapter["retired"] for adapter in snapshot["adapters"])
        yield self._gauge("npu_weave:adapters_draining", "Out of service, and still used by requests.", draining)

    def _workers(self, snapshot: Snapshot) -> Iterator[Metric]:
        for name, key, text in (
            ("expert_pages", "pages", "Pages mapped under base and adapter experts."),
            ("expert_bytes", "mapped_bytes", "Bytes of these pages."),
            ("host_cache_adapters", "host_cache_adapters", "Adapters in the host cache, out of service."),
            ("host_cache_bytes", "host_cache_bytes", "Bytes of these adapters."),
        ):
            gauge = GaugeMetricFamily(f"npu_weave:{name}", text, labels=["model_name", "rank"])
            for rank, worker in enumerate(snapshot["workers"]):
                gauge.add_metric([self._model, str(rank)], worker[key])
            yield gauge
        for name, key, text in (
            ("adapter_evictions", "evictions", "Adapters that left a device slot for another."),
            ("adapter_disk_reads", "disk_reads", "Adapters read from files."),
        ):
            counter = self._counter(f"npu_weave:{name}", text, "rank")
            for rank, worker in enumerate(snapshot["workers"]):
                counter.add_metric([self._model, str(rank)], worker[key])
            yield counter

    def _served(self, snapshot: Snapshot) -> Iterator[Metric]:
        for name, key, text in (
            ("requests", "requests", "Requests that ended, of an adapter in service."),
            ("prompt_tokens", "prompt_tokens", "Prompt tokens of these requests."),
            ("generated_tokens", "generated_tokens", "Tokens generated for these requests."),
        ):
            counter = self._counter(f"npu_weave:adapter_{name}", text, "adapter_name")
            for adapter, counts in snapshot["served"].items():
                counter.add_metric([self._model, adapter], counts[key])
            yield counter

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge

    def _counter(self, name: str, text: str, label: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, text, labels=["model_name", label])

    def _histogram(self, name: str, text: str, report: Mapping[str, Any]) -> Metric:
        histogram = HistogramMetricFamily(name, text, labels=["model_name"])
        histogram.add_metric([self._model], buckets=cumulative(report["counts"]), sum_value=report["sum"])
        return histogram
