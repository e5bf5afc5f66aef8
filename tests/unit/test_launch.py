"""The arguments of `vllm serve` that are derived from ours, and how they go together with the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from npu_weave.engine.vllm.launch import serve_arguments
from npu_weave.errors import ConfigError

WEAVE = {"allowed_roots": ["/"], "adapter_rows": 8}


def arguments(*options: str, adapters: dict[str, str] | None = None, max_loras: int = 3) -> list[str]:
    return serve_arguments("base", adapters or {}, options, weave=WEAVE, max_loras=max_loras)


def value_of(given: Sequence[str], name: str) -> str:
    """The value of an option that must be there exactly once."""
    assert given.count(name) == 1, given
    return given[given.index(name) + 1]


def config_of(given: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(value_of(given, "--additional-config"))
    return parsed


def test_the_base_comes_first_and_the_users_options_last() -> None:
    given = arguments("--port", "80", "--enforce-eager", adapters={"a": "/x", "b": "/y=z"})
    assert given[0] == "base" and given[-3:] == ["--port", "80", "--enforce-eager"]
    assert "--enable-lora" in given
    assert config_of(given) == {"npu_weave": WEAVE}
    start = given.index("--lora-modules")
    assert given[start + 1 : start + 3] == ["a=/x", "b=/y=z"]


def test_without_adapters_there_are_no_lora_modules() -> None:
    assert "--lora-modules" not in arguments()


@pytest.mark.parametrize(
    "options",
    [
        ("--additional-config", '{"other": 1, "npu_weave": {"adapter_rows": 9, "verify_loads": false}}'),
        ('--additional-config={"other": 1, "npu_weave": {"adapter_rows": 9, "verify_loads": false}}',),
        ('--additional_config={"other": 1, "npu_weave": {"adapter_rows": 9, "verify_loads": false}}',),
        ("--additional_config", '{"other": 1, "npu_weave": {"adapter_rows": 9, "verify_loads": false}}'),
    ],
)
def test_the_users_own_additional_config_is_merged_and_wins(options: tuple[str, ...]) -> None:
    given = arguments("--port", "80", *options, "--seed", "1")
    assert config_of(given) == {
        "other": 1,
        "npu_weave": {"allowed_roots": ["/"], "adapter_rows": 9, "verify_loads": False},
    }
    assert not [option for option in given if option.startswith(("--additional_config", "--additional-config="))]
    assert given[-4:] == ["--port", "80", "--seed", "1"]


def test_a_config_without_our_key_is_kept() -> None:
    given = arguments("--additional-config", '{"other": {"npu_weave": 1}}')
    assert config_of(given) == {"other": {"npu_weave": 1}, "npu_weave": WEAVE}


@pytest.mark.parametrize("text", ["", "[]", "{", "1", '"npu_weave"', '{"npu_weave": 1}', '{"npu_weave": null}'])
def test_additional_config_must_be_an_object(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        arguments("--additional-config", text)
    assert error.value.code == "CONFIG_INVALID" and "--additional-config" in str(error.value)


@pytest.mark.parametrize("option", ["--additional-config.npu_weave.adapter_rows", "--additional_config.x=1"])
def test_a_part_of_additional_config_would_replace_all_of_ours(option: str) -> None:
    with pytest.raises(ConfigError) as error:
        arguments(option, "5")
    assert error.value.code == "CONFIG_INVALID"


@pytest.mark.parametrize("options", [("--lora-modules", "x=/x"), ("--lora_modules", "x=/x"), ("--lora-modules=x=/x",)])
def test_lora_modules_would_replace_the_adapters(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        arguments(*options, adapters={"a": "/a"})
    assert error.value.code == "ADAPTER_ARGUMENT_INVALID"


@pytest.mark.parametrize(
    ("options", "adapters", "slots", "staged"),
    [
        ((), 0, "3", "3"),
        ((), 5, "3", "5"),
        (("--max-loras", "7"), 5, "7", "7"),
        (("--max_loras", "7"), 5, None, "7"),
        (("--max-loras=2",), 5, None, "5"),
        (("--max-loras", "2", "--max-cpu-loras", "9"), 5, "2", "9"),
        (("--max-loras", "many"), 5, "many", "5"),  # vLLM's to refuse
    ],
)
def test_slots(options: tuple[str, ...], adapters: int, slots: str | None, staged: str) -> None:
    given = arguments(*options, adapters={f"a{n}": f"/{n}" for n in range(adapters)})
    assert value_of(given, "--max-cpu-loras") == staged
    if slots is None:
        assert "--max-loras" not in given, "the user's spelling stands"
    else:
        assert value_of(given, "--max-loras") == slots
