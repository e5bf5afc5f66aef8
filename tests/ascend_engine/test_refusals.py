"""Settings that vllm-ascend itself accepts and npu-weave refuses, as an engine's start meets them. No engine starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.quantised_models import quantise_checkpoint
from fixtures.tiny_models import TinyFamily

from npu_weave.errors import UnsupportedError

pytestmark = pytest.mark.ascend_engine


@pytest.fixture(scope="module")
def configure(families: Callable[..., TinyFamily]) -> Callable[..., Any]:
    """The final configuration for some options, with `additional` beside our key."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()

    def make(additional: dict[str, Any] | None = None, **options: Any) -> Any:
        settings = {
            "model": str(families("qwen3_moe", 0).base),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            **options,
        }
        settings.setdefault("enable_lora", True)
        return EngineArgs(additional_config={"npu_weave": {}, **(additional or {})}, **settings).create_engine_config()

    return make


def test_the_settings_that_are_served_are_not_refused(configure: Callable[..., Any]) -> None:
    config = configure({"enable_flashcomm1": False, "weight_nz_mode": 2}, max_loras=2)
    assert config.device_config.device_type == "npu" and config.lora_config.max_loras == 2


def test_a_quantised_checkpoint_and_what_it_needs(
    configure: Callable[..., Any], families: Callable[..., TinyFamily], tmp_path: Path
) -> None:
    model = str(quantise_checkpoint(families("qwen3_moe", 0).base, tmp_path / "w8a8"))
    assert configure(model=model, dtype="bfloat16").model_config.quantization == "ascend"
    with pytest.raises(UnsupportedError) as refused:
        configure({"ascend_fusion_config": {"fusion_ops_gmmswigluquant": False}}, model=model, dtype="bfloat16")
    assert refused.value.thing == "fusion_ops_gmmswigluquant=false"


@pytest.mark.parametrize(
    ("setting", "additional", "options"),
    [
        ("enable_fused_mc2", {"enable_fused_mc2": 1}, {}),
        ("eplb_config", {"eplb_config": {"dynamic_eplb": True}}, {}),
        ("multistream_overlap_gate", {"multistream_overlap_gate": True}, {}),
        ("weight_prefetch_config", {"weight_prefetch_config": {"enabled": True}}, {}),
        ("no --enable-lora", {}, {"enable_lora": False}),
        ("--enable-sleep-mode", {}, {"enable_sleep_mode": True}),
        ("--load-format netloader or rfork", {}, {"load_format": "netloader"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_refused_with_its_name_and_a_remedy(
    setting: str,
    additional: dict[str, Any],
    options: dict[str, Any],
    configure: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYNAMIC_EPLB", "true")  # without it vllm-ascend itself refuses eplb_config
    with pytest.raises(UnsupportedError) as refused:
        configure(additional, **options)
    assert (refused.value.code, refused.value.thing) == ("SETTING_UNSUPPORTED", setting)
    assert refused.value.remedy
