"""`npu-weave serve`: everything that can be refused is refused before the engine starts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from fixtures.adapters import write_adapter, write_base, write_expert_config
from typer.testing import CliRunner

from npu_weave.cli.main import app

EXPERTS = {1: [3, 0], 2: [4]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base, two adapters and a directory for more."""
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "one", EXPERTS)
    write_adapter(tmp_path / "two", EXPERTS)
    (tmp_path / "more").mkdir()
    return tmp_path


def dry_run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments), "--dry-run"], env={"COLUMNS": "5000"})


def vllm_arguments(*arguments: object) -> list[str]:
    """What `vllm serve` would be given."""
    result = dry_run(*arguments)
    assert result.exit_code == 0, result.output
    return shlex.split(result.stdout.splitlines()[-1])[1:]


def weave_of(given: list[str]) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(given[given.index("--additional-config") + 1])["npu_weave"]
    return parsed


def refused(code: str, exit_code: int, *arguments: object) -> None:
    result = dry_run(*arguments)
    assert result.stderr.startswith(f"error [{code}] "), result.output
    assert result.exit_code == exit_code
    assert "Traceback" not in result.output


def test_a_report_and_vllms_arguments(files: Path) -> None:
    result = dry_run(files / "base", "--adapter", f"one={files / 'one'}", "--adapter-root", files / "more")
    assert result.exit_code == 0, result.output
    assert f"3 experts, 432 bytes, {files / 'one'}" in result.stdout
    assert "deepseek_v2, 2 MoE layers of 5 experts" in result.stdout
    assert f"run-time loading  below {files / 'more'}" in result.stdout


def test_names_paths_and_limits_reach_vllm(files: Path) -> None:
    given = vllm_arguments(
        files / "base", "--adapter", f"one={files / 'one'}", "--adapter", f"two={files / 'two'}",
        "--adapter-rows", 6, "--adapter-memory", "64MiB", "--host-cache", "0", "--port", 8123, "--max-loras", 2,
    )  # fmt: skip
    assert given[0] == str(files / "base")
    start = given.index("--lora-modules")
    assert given[start + 1 : start + 3] == [f"one={files / 'one'}", f"two={files / 'two'}"]
    roots = [str(files / "one"), str(files / "two")]
    assert weave_of(given) == {"allowed_roots": roots, "adapter_rows": 6, "adapter_memory": "64MiB", "host_cache": "0"}
    assert given[-4:] == ["--port", "8123", "--max-loras", "2"]


def test_paths_outside_the_adapters_and_roots_are_never_allowed(files: Path) -> None:
    given = vllm_arguments(files / "base", "--adapter", f"one={files / 'one'}", "--adapter-root", files / "more")
    assert weave_of(given)["allowed_roots"] == [str(files / "one"), str(files / "more")]
    assert weave_of(vllm_arguments(files / "base"))["allowed_roots"] == []


@pytest.mark.parametrize(("adapters", "root", "slots"), [(0, False, 1), (2, False, 2), (0, True, 4), (2, True, 4)])
def test_slots_without_max_loras(files: Path, adapters: int, root: bool, slots: int) -> None:
    named = [text for name in ("one", "two")[:adapters] for text in ("--adapter", f"{name}={files / name}")]
    rooted = ["--adapter-root", files / "more"] if root else []
    given = vllm_arguments(files / "base", *named, *rooted)
    assert given[given.index("--max-loras") + 1] == str(slots)


def test_the_users_additional_config_is_merged(files: Path) -> None:
    given = vllm_arguments(
        files / "base", "--adapter-rows", 6, "--additional-config", '{"x": 1, "npu_weave": {"verify_loads": false}}'
    )
    assert given.count("--additional-config") == 1
    assert json.loads(given[given.index("--additional-config") + 1])["x"] == 1
    assert weave_of(given) == {"allowed_roots": [], "adapter_rows": 6, "verify_loads": False}


@pytest.mark.parametrize("value", ["one", "=path", "one=", "", "a b=x", "../x=y"])
def test_bad_adapter_arguments(files: Path, value: str) -> None:
    invalid_name = value in ("=path", "a b=x", "../x=y")
    code, exit_code = ("ADAPTER_NAME_INVALID", 3) if invalid_name else ("ADAPTER_ARGUMENT_INVALID", 2)
    refused(code, exit_code, files / "base", "--adapter", value)


def test_a_name_given_twice(files: Path) -> None:
    named = ["--adapter", f"one={files / 'one'}", "--adapter", f"one={files / 'two'}"]
    refused("ADAPTER_ARGUMENT_INVALID", 2, files / "base", *named)


def test_a_path_that_is_not_there(files: Path) -> None:
    refused("ADAPTER_NOT_FOUND", 3, files / "base", "--adapter", f"one={files / 'none'}")
    refused("ADAPTER_PATH_URL", 3, files / "base", "--adapter", "one=https://example.org/one")


def test_broken_adapters(files: Path) -> None:
    write_adapter(files / "big", {9: [0]})
    refused("ADAPTER_LAYER_INVALID", 3, files / "base", "--adapter", f"big={files / 'big'}")
    os.truncate(files / "one" / "model.safetensors", 100)
    refused("FILE_TRUNCATED", 3, files / "base", "--adapter", f"two={files / 'two'}", "--adapter", f"x={files / 'one'}")
    write_expert_config(files / "two", EXPERTS, npu_weave={"base_fingerprint": "0" * 64})
    refused("ADAPTER_BASE_MISMATCH", 3, files / "base", "--adapter", f"two={files / 'two'}")


def test_a_base_that_cannot_be_served(files: Path) -> None:
    config = json.loads((files / "base" / "config.json").read_text())
    (files / "base" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refused("MODEL_TYPE_UNSUPPORTED", 6, files / "base")


@pytest.mark.parametrize(
    "options",
    [
        ("--adapter-rows", "0"),
        ("--adapter-memory", "much"),
        ("--host-cache", "-1GiB"),
        ("--adapter-root", "/there/is/no/such/directory"),
        ("--additional-config", "{"),
        ("--additional-config.npu_weave.adapter_rows", "4"),
        ("--additional-config", '{"npu_weave": {"adapter_row": 4}}'),
        ("--additional-config", '{"npu_weave": {"allowed_roots": ["/there/is/no/such/directory"]}}'),
    ],
)
def test_bad_settings(files: Path, options: tuple[str, ...]) -> None:
    refused("CONFIG_INVALID", 2, files / "base", *options)


def test_a_refusal_comes_before_the_engine_is_imported(files: Path) -> None:
    """With a vLLM that ends the process when it is imported."""
    trap = files / "trap" / "vllm"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit(99)")
    (files / "one" / "expert_cfg.json").write_text("{")

    def serve(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "npu_weave", "serve", files / "base", "--adapter", f"{name}={files / name}"],
            env={**os.environ, "PYTHONPATH": str(trap.parent)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    broken = serve("one")
    assert broken.returncode == 3 and broken.stderr.startswith("error [JSON_INVALID] "), broken
    assert serve("two").returncode == 99, "a good adapter gets as far as the engine"
