"""Installed and not asked for: without the key ``npu_weave`` vLLM is as it was, and the plugin costs it no imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from fixtures.plain_vllm import ENGINE, ENVIRONMENT, GREEDY, Batch, run_batch, stop
from fixtures.tiny_models import EXPERTS, LAYERS, TinyFamily

pytestmark = pytest.mark.engine
# the worker cannot import this module: what it is to run travels whole
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROMPTS = ["hello world", "foo bar", "0123456789" * 4, "MoE", "a prompt of more than one block, " * 6]


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", 4)
    return made


@pytest.fixture(scope="module")
def engine(family: TinyFamily) -> Iterator[Any]:
    """An engine as any other user of vLLM starts it, with the settings of another plugin beside."""
    from vllm import LLM

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}.items():
            patch.setenv(name, value)
        patch.delenv("VLLM_PLUGINS", raising=False)
        llm = LLM(str(family.base), additional_config={"other_plugin": {"rows": 3}}, **ENGINE)
        yield llm
        stop(llm)


def test_answers_are_those_of_plain_vllm(engine: Any, family: TinyFamily, plain: Any) -> None:
    from vllm import SamplingParams

    truth = plain({"base": family.base}, {"once": Batch(PROMPTS)})["base"]["once"]
    assert run_batch(engine, PROMPTS, SamplingParams(**GREEDY)) == truth


def worker_state(worker: Any) -> dict[str, Any]:
    """What the plugin did to a worker."""
    import sys

    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    from npu_weave.engine.vllm import patches

    runner = worker.model_runner
    layers = [module for module in runner.get_model().modules() if isinstance(module, MoERunner)]
    return {
        "plugin": "npu_weave.engine.vllm.plugin" in sys.modules,
        "patches": patches.status(),
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("npu_weave", "weave_ops")),
        "manager": type(getattr(runner, "lora_manager", None)).__name__,
        "rows": [layer.routed_experts.w13_weight.shape[0] for layer in layers],
        "rerouted": ["_select_experts" in vars(layer.router) for layer in layers],
    }


def test_worker_has_the_patches_and_nothing_of_ours_runs(engine: Any) -> None:
    (state,) = engine.collective_rpc(worker_state)
    assert state["plugin"]
    patched = state["patches"]
    assert set(patched.values()) <= {"applied", "waiting for import"}
    assert patched["vllm.v1.worker.lora_model_runner_mixin"] == "applied", "or this test shows nothing"
    assert patched["vllm.model_executor.layers.fused_moe.config"] == "applied"
    assert state["manager"] == "NoneType"
    assert state["rows"] == [EXPERTS] * LAYERS, "no row beyond the base experts"
    assert state["rerouted"] == [False] * LAYERS
    rooms = {name.split(".")[1] for name in state["ours"] if "." in name}
    assert rooms <= {"config", "errors", "engine"}, "no memory, experts or operators are even imported"
    assert not {"manager", "moe_layer", "build", "control"} & {name.rsplit(".", 1)[-1] for name in state["ours"]}


def test_engine_core_has_no_adapter_memory_to_report(engine: Any) -> None:
    assert engine.llm_engine.engine_core.call_utility("npu_weave_memory") == []


REGISTER = """
import json, sys
import vllm
before = set(sys.modules)
from npu_weave.engine.vllm.plugin import register
register()
register()
loaded = sorted(set(sys.modules) - before)
from npu_weave.engine.vllm import patches
waiting = patches.status()
from vllm.engine.arg_utils import EngineArgs
method, wraps = EngineArgs.create_engine_config, 0
while hasattr(method, "__wrapped__"):
    method, wraps = method.__wrapped__, wraps + (method.__globals__["__name__"] == "npu_weave.engine.vllm.hooks")
print(json.dumps({"loaded": loaded, "waiting": waiting, "then": patches.status(), "wraps": wraps}))
"""


def test_registering_imports_nothing_heavy_and_patches_on_import() -> None:
    """In a fresh process, with vLLM imported as it is when it calls its plugins."""
    environment = {**os.environ, "VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name in found["loaded"] if name.split(".")[0] in ("vllm", "torch", "transformers")]
    ours = {name for name in found["loaded"] if name.split(".")[0] in ("npu_weave", "weave_ops")}
    parts = ("plugin", "patches", "patch", "hooks", "lazy", "versions")
    assert ours == {
        "npu_weave", "npu_weave.config", "npu_weave.errors", "npu_weave.engine", "npu_weave.engine.vllm",
        *(f"npu_weave.engine.vllm.{part}" for part in parts),
        "npu_weave.engine.ascend", "npu_weave.engine.ascend.patches", "npu_weave.engine.ascend.hooks",
    }  # fmt: skip
    assert set(found["waiting"].values()) == {"waiting for import"}
    assert found["then"]["vllm.engine.arg_utils"] == "applied"
    assert found["then"]["vllm.v1.engine.core"] == "waiting for import"
    assert found["wraps"] == 1, "applied once, however often vLLM registers"
