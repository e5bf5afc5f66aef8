"""What the servers of the benchmark are started with, and what is read off them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from weave_bench.serving.lora import named_error
from weave_bench.serving.models import Adapter, make_adapters
from weave_bench.serving.systems import Spec, engines, kv_tokens
from weave_lab.artifacts import shipped
from weave_lab.checkpoint import adapter_tensors

METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",enable_prefix_caching="False",engine="0",num_gpu_blocks="8192"} 1.0
"""


def test_kv_capacity_is_blocks_times_block_size() -> None:
    assert kv_tokens(METRICS) == 128 * 8192
    with pytest.raises(ValueError, match="cache_config_info"):
        kv_tokens("# nothing")


def value_of(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_all_engines_run_with_the_same_settings() -> None:
    adapter = Adapter("one", "cipher", Path("a"), 3)
    plain = Spec("p", Path("m"), None, 2, 1 << 20)
    weave = Spec("w", Path("m"), [adapter], 2, 1 << 20)
    settings = plain.command()[plain.command().index("--dtype") :]
    assert weave.command()[-len(settings) :] == settings
    assert value_of(settings, "--kv-cache-memory-bytes") == str(1 << 20)
    assert value_of(weave.command(), "--adapter") == "one=a"


def test_plain_vllm_loads_no_plugin_and_threads_are_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    plain, weave = (Spec("x", Path("m"), adapters, 3, 1).environment() for adapters in (None, ()))
    assert plain["VLLM_PLUGINS"] == "" and "VLLM_PLUGINS" not in weave
    assert plain["OMP_NUM_THREADS"] == weave["OMP_NUM_THREADS"] == "3"
    assert "VLLM_CPU_KVCACHE_SPACE" not in plain


def test_more_adapters_tune_the_same_experts_to_other_values(tmp_path: Path) -> None:
    adapters = make_adapters(shipped(), 6, tmp_path)
    names = ["cipher", "intent", "island", "record", "cipher-2", "intent-2"]
    assert [adapter.name for adapter in adapters] == names
    first, again = adapters[0], adapters[4]
    assert (again.domain, again.experts) == (first.domain, first.experts) == ("cipher", 19)
    one, other = adapter_tensors(first.path), adapter_tensors(again.path)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        change = (other[name].float() - tensor.float()).std() / tensor.float().std()
        assert 0.005 < change < 0.02
        assert not torch.equal(other[name], tensor)


def test_the_first_error_a_log_names_is_told() -> None:
    log = """(EngineCore pid=1) INFO 11-22 13:08:17 [core.py:1] starting
(Worker pid=2) ERROR 11-22 13:08:17 [executor.py:9] AttributeError: module 'triton.language' has no 'bfloat16'
(APIServer pid=3) ERROR 11-22 13:08:17 [serving.py:9] EngineDeadError: see above
"""
    assert named_error(log) == "AttributeError: module 'triton.language' has no 'bfloat16'"
    assert named_error("a line: with a colon\nRuntimeError\n") == ""


STAND_IN = """
import http.server, pathlib, sys, time

mark, other = map(pathlib.Path, sys.argv[1:3])
port = int(sys.argv[sys.argv.index("--port") + 1])
found = other.exists()
mark.touch()
while sys.argv[3] == "wait" and not other.exists():
    time.sleep(0.01)
metrics = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="%d"} 1.0' % (2 if found else 1)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(metrics)))
        self.end_headers()
        self.wfile.write(metrics)

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
"""A server that may wait until another was started, and says as KV blocks whether it found that one there."""


@dataclass(frozen=True)
class StandIn(Spec):
    """An engine in whose place `STAND_IN` is started."""

    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [sys.executable, "-c", STAND_IN, *self.arguments]


@pytest.mark.parametrize("beside", [True, False])
def test_engines_start_beside_each_other_or_in_turn(tmp_path: Path, beside: bool) -> None:
    """Beside each other each waits for the other here; in turn the second finds the first, and both are timed."""
    marks = [str(tmp_path / name) for name in ("one", "two")]
    specs = [
        StandIn(name, Path("m"), None, 1, 1, arguments=(*own, "wait" if beside else "go"))
        for name, own in zip(("one", "two"), (marks, reversed(marks)), strict=True)
    ]
    with engines(specs, tmp_path / "logs", Console(quiet=True), beside=beside) as found:
        processes = [engine.process for engine in found.values()]
        assert list(found) == ["one", "two"]
        timed = [engine.start_seconds is not None for engine in found.values()]
        blocks = [engine.kv_tokens // 16 for engine in found.values()]
    assert timed == [not beside] * 2
    assert beside or blocks == [1, 2]
    assert all(process.poll() is not None for process in processes), "they end with the body"
