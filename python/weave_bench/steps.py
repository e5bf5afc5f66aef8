"""The part ``steps``: MoE layers of vLLM at DeepSeek-V2-Lite's geometry, step by step, with npu-weave and without.

It runs in a process of its own, whose memory is gone when the other parts begin.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from weave_bench.results import Part

ESFT = "WEAVE_ESFT"
"""Environment variable: a directory with recorded routing and configurations of ESFT adapters, see `layers.traces`."""


def measure(*, quick: bool) -> Part:
    """Measure all four tables.

    Raises:
        FileNotFoundError: WEAVE_ESFT names a directory without the traces.
        RuntimeError: answers that should be equal are not.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_here, quick).result()


def measure_here(quick: bool) -> Part:
    """As `measure`, in this process, which must not have imported vLLM yet."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported, and so are the imports below
    import torch

    from weave_bench.layers import bench, traces, traffic
    from weave_bench.layers.batch import HIDDEN
    from weave_bench.layers.engine_layers import WIDTH
    from weave_bench.layers.overhead import overhead
    from weave_bench.layers.own_work import own_work
    from weave_bench.layers.parity import parity
    from weave_bench.layers.separate import separate

    begun = time.monotonic()
    scale = bench.QUICK if quick else bench.FULL

    def make_traffic(layers: int) -> traffic.Traffic:
        directory = os.environ.get(ESFT)
        if directory:
            return traces.RecordedTraffic(Path(directory), layers, adapters=bench.ADAPTERS)
        return traffic.MadeUpTraffic(layers, adapters=bench.ADAPTERS)

    def rows_of(layers: int) -> tuple[int, int]:
        tenants = make_traffic(layers).tenants
        return max(traffic.rows_needed(tenants)), max(traffic.rows_needed(tenants[: bench.COMPARED]))

    layers = bench.layers_that_fit(scale.layers, *rows_of(scale.layers))
    requests = make_traffic(layers)
    rows = traffic.rows_needed(requests.tenants)
    needed = bench.memory_needed(layers, *rows_of(layers)) / 2**30
    Console().print(
        f"scaled to this machine: {layers} of DeepSeek-V2-Lite's 26 MoE layers, {needed:.1f} GiB of memory; "
        f"{requests.source}"
    )
    with bench.open_bench(requests, scale, layers) as opened:
        tables = [overhead(opened), parity(opened), separate(opened), own_work(opened)]
        settings = {
            "geometry": f"hidden {HIDDEN}, {traffic.EXPERTS} experts of {WIDTH}, top-{traffic.TOP_K}, bfloat16",
            "layers": f"{layers} of 26, one after the other: as many as asked for ({scale.layers}) and fit in memory",
            "traffic": requests.source,
            "adapters": [tenant.name for tenant in requests.tenants],
            "adapter rows a layer": rows,
            "rows a layer, limit of the kernel": (2**31 - 1) // (2 * WIDTH * HIDDEN) + 1,  # 32-bit addresses
            "pairs": scale.pairs,
            "read between timed runs to empty caches, MiB": opened.cold.nbytes >> 20,
            "threads": torch.get_num_threads(),
        }
    left_out = [
        "attention, router projections and the rest of a model: only MoE layers are made here",
        "gating and rerouting as one operator: on a CPU vLLM's own gating stays in front of the rerouting, because "
        "only so are its answers vLLM's to the bit; the part kernels times the fused operator",
    ]
    return Part("steps", time.monotonic() - begun, quick, settings, tables, left_out)
