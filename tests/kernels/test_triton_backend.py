"""The Triton backend as a whole: when it registers, that it compiles without a GPU, and graph capture on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from weave_ops import gating_reference, reference

TESTS = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> str:
    """What a Python process prints, in which Triton compiles and does not interpret."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


REGISTERED = """
import sys, torch, weave_ops.triton
names = ("gating_reroute", "reroute", "reroute_")
has = torch._C._dispatch_has_kernel_for_dispatch_key
print([has(f"npu_weave::{name}", "CUDA") for name in names], sys.modules.get("triton") is not None)
"""


def test_the_backend_registers_and_imports_no_triton() -> None:
    assert run("-c", REGISTERED).split("\n")[0] == "[True, True, True] False"


def test_without_triton_nothing_is_registered() -> None:
    absent = "import sys; sys.modules['triton'] = None\n"
    assert run("-c", absent + REGISTERED).split("\n")[0] == "[False, False, False] False"


def test_the_kernels_compile_for_gpus_of_two_generations(tmp_path: Path) -> None:
    lines = run("-m", "fixtures.triton_compiler", "80", "90", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 8
    for line in lines:
        name, capability, size = line.split()
        assert name in ("reroute", "gating_reroute") and capability in ("80", "90") and int(size) > 1000


@pytest.mark.cuda
def test_a_captured_graph_follows_its_inputs() -> None:
    """A read of any value on the host would end the capture, or leave the first values in the graph."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 400, (4, 128), generator=generator, dtype=torch.int32)

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        slots = torch.randint(0, 4, (300,), generator=generator, dtype=torch.int32)
        return torch.randint(-12, 13, (257, 128), generator=generator) / 4, slots

    logits, slots, there = *(tensor.cuda() for tensor in inputs()), table.cuda()

    def step() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights, rows = torch.ops.npu_weave.gating_reroute(logits, None, 8, "softmax", True, 1, 1, 1.0, slots, there)
        ids = (rows % 128).long()
        torch.ops.npu_weave.reroute_(ids, slots, there)
        return weights, rows, ids

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        new_logits, new_slots = inputs()
        logits.copy_(new_logits)
        slots.copy_(new_slots)
        graph.replay()
        weights, rows = gating_reference.gating_reroute(
            new_logits, None, 8, "softmax", True, 1, 1, 1.0, new_slots, table
        )
        ids = reference.reroute((rows % 128).long(), new_slots, table)
        torch.testing.assert_close(tuple(each.cpu() for each in out), (weights, rows, ids), rtol=2e-6, atol=0)
