"""vLLM's own MoE layers, a few of them and nothing else of a model, with and without npu-weave.

npu-weave comes in as in a server: vLLM loads it as a plugin, which puts its adapter manager in the place of vLLM's;
that moves the weights of the layers into virtual tensors, inserts the rerouting, and takes adapters through its own
calls.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.v1.worker import lora_model_runner_mixin

from npu_weave.experts.packed import PackedAdapter, PackedLayer
from weave_bench.layers.batch import HIDDEN, Step
from weave_bench.layers.traffic import EXPERTS, TOP_K, Tenant
from weave_bench.layers.weights import fill_experts

WIDTH = 1408
ROW_BYTES = 3 * HIDDEN * WIDTH * 2
"""Of one expert: gate, up and down projections in bfloat16."""

_WEIGHTS = ("w13_weight", "w2_weight")
_SPARE = 32
_MAX_TOKENS = 1024


@contextmanager
def engine_process() -> Iterator[Path]:
    """What vLLM's layers need around them: one rank, inference mode. Yields a directory that goes in the end."""
    torch.cpu._init_amx()  # asks the system for the tiles that the kernel uses; without them it does nothing
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        with set_current_vllm_config(VllmConfig()):
            init_distributed_environment(1, 0, f"file://{scratch}/store", 0, "gloo")
            initialize_model_parallel(1, 1)
        try:
            yield Path(scratch)
        finally:
            cleanup_dist_env_and_memory()


class EngineLayers:
    """`count` MoE layers of DeepSeek-V2-Lite's geometry in Qwen3-MoE form, as vLLM makes and runs them.

    Weights are random, bfloat16, in the layout of vLLM's CPU kernel, made by its own processing after loading; the
    same for every instance.

    Args:
        scratch: where a config of a model is written.
        options: more of vLLM's engine arguments.
    """

    def __init__(self, scratch: Path, count: int, **options: Any) -> None:
        self.config = _engine_config(scratch, count, **options)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList()
        for index in range(count):
            block = nn.Module()
            block.experts = _make_layer(self.config, f"layers.{index}.experts", EXPERTS, seed=index)
            self.model.layers.append(block)
        self.runners: list[Any] = [block.experts for block in self.model.layers]

    @property
    def count(self) -> int:
        """Of layers."""
        return len(self.runners)

    def weights(self, layer: int) -> dict[str, torch.Tensor]:
        """The expert parameters as the kernel reads them: bfloat16, one row an expert."""
        return {name: getattr(self.runners[layer].routed_experts, name).data for name in _WEIGHTS}

    def use_weights(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Have the kernel read other tensors from now on."""
        for name, tensor in weights.items():
            getattr(self.runners[layer].routed_experts, name).data = tensor

    def run(self, step: Step, layers: int | None = None) -> list[torch.Tensor]:
        """All layers, or the first few, one after the other, as in the forward pass: top-k, rerouting, experts.

        Router projections are no part of it. Returns each layer's output, bfloat16 ``[tokens, HIDDEN]``.
        """
        with set_forward_context(None, self.config):
            pairs = zip(self.runners[:layers], step.logits, strict=False)
            return [runner(step.hidden, logits) for runner, logits in pairs]

    def rows(self, step: Step) -> list[torch.Tensor]:
        """Rows of the weight tensors that the kernel would read: for each layer int32 ``[tokens, top_k]``."""
        return [self.select(layer, step)[1] for layer in range(self.count)]

    def select(self, layer: int, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and rows, as one layer's router gives them to the kernel."""
        logits = step.logits[layer]
        weights, rows = self.runners[layer].router.select_experts(
            hidden_states=step.hidden, router_logits=logits, topk_indices_dtype=torch.int32
        )
        return weights, rows


class WovenLayers(EngineLayers):
    """`EngineLayers` under npu-weave's adapter manager.

    Attributes:
        manager: npu-weave's, as vLLM's model runner has it.
    """

    def __init__(self, scratch: Path, count: int, *, adapters: int, adapter_rows: int) -> None:
        super().__init__(
            scratch,
            count,
            enable_lora=True,
            max_loras=adapters,
            max_cpu_loras=adapters,
            additional_config={"npu_weave": {"adapter_rows": adapter_rows}},
        )
        device = torch.device("cpu")
        self.manager: Any = lora_model_runner_mixin.LRUCacheWorkerLoRAManager(self.config, device, {})
        with set_current_vllm_config(self.config):
            self.manager.create_lora_manager(self.model, self.config)
        self._mixin = lora_model_runner_mixin.LoRAModelRunnerMixin()
        self._mixin.lora_manager = self.manager
        self._spare: dict[str, torch.Tensor] | None = None

    def load(self, revision: int, tenant: Tenant) -> None:
        """Load an adapter, as the engine core does; its host copy is in the host cache already.

        Its experts have rows of their own. On the host they are windows of one set of spare experts, so host copies
        cost next to nothing, and another adapter may have the same values in its rows.

        Raises:
            CapacityError, DriverError: it does not fit.
            RuntimeError: its rows could not be written.
        """
        digest = f"{tenant.name} of the benchmark"
        self.manager.store.cache.put(PackedAdapter(tenant.name, digest, self._packed(revision, tenant)))
        self.manager.begin_load(revision, tenant.name, "", digest, None)
        self._reach(revision, "read")
        while self.manager.commit_load(revision)[1]:
            pass
        self._reach(revision, "copied")
        self.manager.publish_load(revision)

    def set_step(self, revisions: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> None:
        """Say whose tokens the next step has, as vLLM's model runner does: ``[requests]`` each."""
        self.manager.set_step(revisions, tokens)

    def step_call(self, revisions: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> Callable[[], None]:
        """The whole call that vLLM's model runner makes once a step."""
        set_active, batch = self._mixin.set_active_loras, _Requests(revisions)
        return lambda: set_active(batch, tokens)

    def _reach(self, revision: int, stage: str) -> None:
        while (state := self.manager.load_states()[revision]).get("stage") in ("reading", "copying"):
            time.sleep(0.01)
        if state.get("stage") != stage:
            raise RuntimeError(f"revision {revision} could not be loaded: {state}")

    def _packed(self, revision: int, tenant: Tenant) -> dict[int, PackedLayer]:
        if self._spare is None:
            spare = _make_layer(self.config, "spare.0.experts", _SPARE, seed=10_000).routed_experts
            self._spare = {name: getattr(spare, name).data for name in _WEIGHTS}
        layers = {}
        for index, experts in enumerate(tenant.experts):
            first = (7 * revision + 3 * index) % (_SPARE - len(experts) + 1)
            weights = {name: tensor[first : first + len(experts)] for name, tensor in self._spare.items()}
            digests = tuple(f"{tenant.name} {index} {expert}" for expert in experts)
            layers[index] = PackedLayer(experts, weights, digests)
        return layers


class _Requests:
    """What npu-weave reads of vLLM's input batch."""

    def __init__(self, revisions: npt.NDArray[np.int64]) -> None:
        self.request_lora_mapping = revisions
        self.num_reqs = len(revisions)


def _make_layer(config: VllmConfig, name: str, experts: int, seed: int) -> Any:
    with set_current_vllm_config(config):
        runner = FusedMoEFactory(
            num_experts=experts, top_k=TOP_K, hidden_size=HIDDEN, intermediate_size=WIDTH,
            params_dtype=torch.bfloat16, renormalize=False, prefix=name,
        )  # fmt: skip
        for number, weight in enumerate(_WEIGHTS):
            fill_experts(getattr(runner.routed_experts, weight).data, seed=2 * seed + number)
        runner.routed_experts.quant_method.process_weights_after_loading(runner.routed_experts)
    return runner


def _engine_config(scratch: Path, layers: int, **options: Any) -> VllmConfig:
    model = scratch / f"model of {layers}"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "model_type": "qwen3_moe",
                "torch_dtype": "bfloat16",
                "vocab_size": 1024,
                "hidden_size": HIDDEN,
                "intermediate_size": WIDTH,
                "num_hidden_layers": layers,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "max_position_embeddings": _MAX_TOKENS,
                "num_experts": EXPERTS,
                "num_experts_per_tok": TOP_K,
                "moe_intermediate_size": WIDTH,
                "decoder_sparse_step": 1,
                "norm_topk_prob": False,
            }
        )
    )
    arguments = EngineArgs(
        str(model), skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16", enforce_eager=True,
        max_model_len=_MAX_TOKENS, max_num_batched_tokens=_MAX_TOKENS, max_num_seqs=256, **options,
    )  # fmt: skip
    return arguments.create_engine_config()
