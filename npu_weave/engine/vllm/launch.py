"""Start vLLM's own server from Python, with the options of ``vllm serve``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from npu_weave.config import KEY, parse_config
from npu_weave.errors import ConfigError


def serve_arguments(
    base: str,
    adapters: Mapping[str, str],
    options: Sequence[str],
    *,
    weave: Mapping[str, Any],
    max_loras: int,
) -> list[str]:
    """The arguments of ``vllm serve`` for a base model and adapters.

    Args:
        base: model directory or hub id.
        adapters: name -> directory.
        options: further options of ``vllm serve``; they win over what is derived here.
        weave: settings under the key ``npu_weave``; a user's own ``--additional-config`` is merged with them and wins.
        max_loras: adapter slots, unless the options say otherwise.

    Raises:
        ConfigError: CONFIG_INVALID, a setting of `weave` or of the user's own is invalid, or the user's
            ``--additional-config`` is not one JSON object;
            ADAPTER_ARGUMENT_INVALID, adapters are given in vLLM's way too, which would replace these.
    """
    _refuse(options)
    rest, given = _take(list(options), "--additional-config")
    additional = _parse(given) if given is not None else {}
    additional[KEY] = {**weave, **additional.get(KEY, {})}
    parse_config(additional[KEY])
    arguments = [base, "--enable-lora", "--additional-config", json.dumps(additional)]
    if not _has(rest, "--max-loras"):
        arguments += ["--max-loras", str(max_loras)]
    if not _has(rest, "--max-cpu-loras"):
        slots = _take(list(rest), "--max-loras")[1]
        asked = int(slots) if slots is not None and slots.isdecimal() else 0
        arguments += ["--max-cpu-loras", str(max(len(adapters), max_loras, asked))]
    if adapters:
        arguments += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    return [*arguments, *rest]


def serve(arguments: Sequence[str], *, runtime_loading: bool) -> None:
    """Run ``vllm serve`` with `arguments` in this process until it is stopped. Mutates the environment.

    vLLM's console script is not used: it does not run from every build of vLLM.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if runtime_loading:
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from npu_weave.engine.vllm.plugin import register

    # vLLM goes on without a plugin that it cannot import; here that has to be an error
    register()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="npu-weave")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    command.validate(parsed)
    command.cmd(parsed)


def _refuse(options: Sequence[str]) -> None:
    """Refuse options that vLLM would put in the place of what is derived here."""
    for option in options:
        name = option.split("=", 1)[0].replace("_", "-")
        if name.startswith("--additional-config."):
            raise ConfigError(
                "CONFIG_INVALID",
                name,
                expected="--additional-config with one JSON object",
                got="a part of it, which replaces the whole",
                remedy=f"write --additional-config '{{\"{KEY}\": {{}}}}'",
            )
        if name == "--lora-modules":
            raise ConfigError(
                "ADAPTER_ARGUMENT_INVALID",
                name,
                expected="--adapter NAME=PATH for each adapter",
                got="vLLM's own option, which replaces them",
                remedy="give every adapter with --adapter",
            )


def _take(options: list[str], name: str) -> tuple[list[str], str | None]:
    """`options` without ``name VALUE`` (or ``name=VALUE``), and the last such value."""
    rest: list[str] = []
    value = None
    index = 0
    while index < len(options):
        option = options[index].replace("_", "-") if options[index].startswith("--") else options[index]
        if option == name and index + 1 < len(options):
            value = options[index + 1]
            index += 1
        elif option.startswith(f"{name}="):
            value = options[index].split("=", 1)[1]
        else:
            rest.append(options[index])
        index += 1
    return rest, value


def _has(options: Sequence[str], name: str) -> bool:
    return _take(list(options), name)[1] is not None


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        value = error
    if not isinstance(value, dict) or not isinstance(value.get(KEY, {}), dict):
        raise ConfigError(
            "CONFIG_INVALID",
            "--additional-config",
            expected="a JSON object",
            got=str(value),
            remedy=f"write --additional-config '{{\"{KEY}\": {{}}}}'",
        )
    return value
