"""Which MoE layers of a loaded model are refused. Real models, loaded by vLLM in this process; no engine is started.

`check_settings` refuses most of these by their settings already; what it cannot see must not get past the layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.model_loading import Load
from fixtures.tiny_models import EXPERTS, LAYERS, TinyFamily, expert_names
from safetensors.torch import load_file

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import moe_layer
from npu_weave.engine.vllm.build import build_bank, choose_adapter_rows
from npu_weave.engine.vllm.moe_layer import find_moe_layers
from npu_weave.errors import ConfigError, UnsupportedError

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", 4)
    return made


def test_layers_are_found_in_order_with_their_limits(load: Load, family: TinyFamily) -> None:
    layers = find_moe_layers(*load(family.base))
    assert [layer.index for layer in layers] == list(range(LAYERS))
    assert {layer.num_experts for layer in layers} == {EXPERTS}
    assert {layer.row_limit.rows for layer in layers} == {2**31 // (2 * 64 * 128)}


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("form", ["chosen", "loaded by vLLM", "as in the checkpoint"])
def test_packing_the_base_experts_gives_what_vllm_loaded(
    form: str, at_once: int, load: Load, family: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel layout of a packed expert is that of the same expert in the model, bit for bit."""
    if form == "as in the checkpoint":  # as on machines whose kernels need no layout of their own
        kernels = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
        monkeypatch.setattr(f"{kernels}.cpu_prepack_moe_weight", lambda weight, isa: weight)
    state = load_file(family.base / "model.safetensors")
    layer = find_moe_layers(*load(family.base))[1]
    assert layer._loaded_as_assembled, "vLLM keeps experts in another order; loads are slower for it"
    if form == "as in the checkpoint":
        assert layer._kept_as_loaded
    if form == "loaded by vLLM":
        layer._loaded_as_assembled = layer._kept_as_loaded = False
    before = {name: weight.clone() for name, weight in layer.weights().items()}
    chosen = [5, 0, 15]
    experts = [ExpertTensors(*(state[name] for name in expert_names("qwen3_moe", 1, expert))) for expert in chosen]
    monkeypatch.setattr(moe_layer, "_PROCESSED_BYTES", at_once * sum(matrix.nbytes for matrix in experts[0]))
    packed = layer.pack(experts)
    assert packed.keys() == before.keys()
    for name, weight in packed.items():
        assert torch.equal(weight, before[name][chosen])
        assert torch.equal(layer.weights()[name], before[name]), "the layer itself is not touched"


def test_what_vllm_makes_of_an_expert_decides_how_others_are_packed(
    load: Load, family: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
    monkeypatch.setattr(f"{kernels}.cpu_prepack_moe_weight", lambda weight, isa: weight.flip(1))
    layer = find_moe_layers(*load(family.base))[0]
    assert layer._loaded_as_assembled and not layer._kept_as_loaded
    experts = [ExpertTensors(*(torch.randn(128, 64).bfloat16().t().contiguous() for _ in range(2)), down)
               for down in (torch.randn(128, 64).bfloat16(),)]  # fmt: skip
    assert torch.equal(layer.pack(experts)["w2_weight"][0], experts[0].down.flip(0))


def test_quantised_layer_is_refused(load: Load, family: TinyFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM has a kernel for such experts where the processor has AMX only; elsewhere they are quantised without one
    layers = "vllm.model_executor.layers"
    monkeypatch.setattr(f"{layers}.fused_moe.experts.cpu_moe.CPUExpertsInt8._supports_current_device", lambda: True)
    monkeypatch.setattr(f"{layers}.quantization.online.int8.Int8OnlineMoEMethod._setup_kernel", lambda *_: None)
    with pytest.raises(UnsupportedError, match="Int8") as refused:
        find_moe_layers(*load(family.base, quantization="experts_int8"))
    assert (refused.value.code, refused.value.thing) == ("LAYER_UNSUPPORTED", "model.layers.0.mlp.experts")
    assert "unquantised" in refused.value.remedy


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("moe_config.has_bias", True, "biases"),
        ("quant_method.moe_kernel.fused_experts._use_zentorch", True, "zentorch"),
        ("global_num_experts", EXPERTS * 2, f"{EXPERTS} expert rows for {EXPERTS * 2}"),
    ],
    ids=["biases", "zentorch", "expert parallel"],
)
def test_layer_of_another_form_is_refused(path: str, value: Any, problem: str, load: Load, family: TinyFamily) -> None:
    """One field of a real layer changed: vLLM makes such layers on other machines or for other models."""
    model, config = load(family.base)
    owner: Any = find_moe_layers(model, config)[2]._experts
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    assert getattr(owner, name) != value
    setattr(owner, name, value)
    with pytest.raises(UnsupportedError, match=problem) as refused:
        find_moe_layers(model, config)
    assert (refused.value.code, refused.value.thing) == ("LAYER_UNSUPPORTED", "model.layers.2.mlp.experts")


def test_model_without_moe_layers_is_refused(load: Load, tmp_path: Path) -> None:
    transformers.Qwen3Config(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, architectures=["Qwen3ForCausalLM"], dtype="bfloat16",
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(UnsupportedError) as refused:
        find_moe_layers(*load(tmp_path, load_format="dummy"))
    assert (refused.value.code, refused.value.thing) == ("NO_MOE_LAYERS", "Qwen3ForCausalLM")


def test_adapter_rows_beyond_the_kernel_are_refused(load: Load, family: TinyFamily) -> None:
    layers = find_moe_layers(*load(family.base))
    most = 2**31 // (2 * 64 * 128) - EXPERTS
    before = {name: weight.data_ptr() for name, weight in layers[0].weights().items()}
    assert choose_adapter_rows(layers, most, slots=2) == most
    with pytest.raises(ConfigError, match=f"at most {most}") as refused:
        build_bank(layers, WeaveConfig(adapter_rows=most + 1), slots=2, device=torch.device("cpu"))
    assert (refused.value.code, refused.value.thing) == ("ROWS_BEYOND_KERNEL", "npu_weave.adapter_rows")
    assert {name: weight.data_ptr() for name, weight in layers[0].weights().items()} == before
