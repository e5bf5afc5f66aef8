"""Start vLLM's own server from Python, with the options of ``vllm serve``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from npu_weave.config import KEY
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
        ConfigError: CONFIG_INVALID, the user's ``--additional-config`` is not a JSON object.
    """
    rest, given = _take(list(options), "--additional-config")
    additional = _parse(given) if given is not None else {}
    additional[KEY] = {**weave, **additional.get(KEY, {})}
    arguments = [base, "--enable-lora", "--additional-config", json.dumps(additional)]
    if not _has(rest, "--max-loras"):
        arguments += ["--max-loras", str(max_loras)]
    if not _has(rest, "--max-cpu-loras"):
        slots = _take(list(rest), "--max-loras")[1]
        arguments += ["--max-cpu-loras", str(max(len(adapters), max_loras, int(slots or 0)))]
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

    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="npu-weave")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    command.validate(parsed)
    command.cmd(parsed)


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
