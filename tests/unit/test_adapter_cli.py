"""`npu-weave adapter`: output for people and machines, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fixtures.adapters import CONFIGS, adapter_tensors, base_tensors, expert_key, write_adapter, write_base
from typer.testing import CliRunner

from npu_weave import __version__
from npu_weave.adapters import MoEGeometry, open_adapter
from npu_weave.cli.main import app
from npu_weave.cli.reporting import human_bytes

EXPERTS = {1: [3, 0], 2: [4]}
ONE_EXPERT = 3 * 4 * 6 * 2


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base, a tuned checkpoint and an adapter."""
    write_base(tmp_path / "base")
    write_base(tmp_path / "tuned", tensors=base_tensors("deepseek_v2") | adapter_tensors("deepseek_v2", EXPERTS))
    write_adapter(tmp_path / "adapter", EXPERTS)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["adapter", *map(str, arguments)], env={"COLUMNS": "200"})


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_inspect(files: Path) -> None:
    said = run_json("inspect", files / "adapter")
    geometry = MoEGeometry.from_config(CONFIGS["deepseek_v2"])
    assert said == {
        "path": str(files / "adapter"),
        "experts": {"1": [0, 3], "2": [4]},
        "total": 3,
        "largest": 2,
        "sparsity": 0.25,
        "shapes": {"gate": [[4, 6]], "up": [[4, 6]], "down": [[6, 4]]},
        "dtypes": ["bfloat16"],
        "nbytes": 3 * ONE_EXPERT,
        "shards": ["model.safetensors"],
        "base_fingerprint": None,
        "digest": open_adapter(files / "adapter", geometry).digest,
    }
    text = run("inspect", files / "adapter")
    assert text.exit_code == 0
    assert "3 in 2 layers, at most 2 in one, sparsity 0.25" in text.stdout
    assert "in 1 file " in text.stdout
    assert said["digest"] in text.stdout
    assert "0 3" in text.stdout


def test_validate(files: Path) -> None:
    said = run_json("validate", files / "adapter", "--base", files / "base", "--check-finite")
    assert (said["valid"], said["finite"], said["total"]) == (True, True, 3)
    assert run_json("validate", files / "adapter", "--base", files / "base")["finite"] is None
    text = run("validate", files / "adapter", "--base", files / "base")
    assert (text.exit_code, text.stderr) == (0, "")
    assert "is a valid adapter of" in text.stdout


def test_extract_then_merge(files: Path) -> None:
    said = run_json("extract", "--base", files / "base", "--tuned", files / "tuned", "--out", files / "new")
    assert (said["experts"], said["total"]) == ({"1": [0, 3], "2": [4]}, 3)
    assert run_json("inspect", files / "new")["base_fingerprint"] == said["base_fingerprint"]
    merged = run_json("merge", "--base", files / "base", "--adapter", files / "new", "--out", files / "merged")
    assert merged["replaced"] == 3
    assert (files / "merged/model.safetensors").read_bytes() == (files / "tuned/model.safetensors").read_bytes()


def test_extract_and_merge_speak_to_people(files: Path) -> None:
    out = run("extract", "--base", files / "base", "--tuned", files / "tuned", "--out", files / "new")
    assert (out.exit_code, out.stderr) == (0, "")
    assert f"wrote {files / 'new'}" in out.stdout
    out = run("merge", "--base", files / "base", "--adapter", files / "new", "--out", files / "merged")
    assert (out.exit_code, out.stderr) == (0, "")
    assert f"wrote {files / 'merged'}" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["inspect", "{}/nothing"], "ADAPTER_NOT_FOUND", 3),
        (["inspect", "{}/bad"], "ADAPTER_TENSOR_MISSING", 3),
        (["validate", "{}/adapter", "--base", "{}/nothing"], "CHECKPOINT_NOT_FOUND", 8),
        (["validate", "{}/adapter", "--base", "{}/llama"], "MODEL_TYPE_UNSUPPORTED", 6),
        (["merge", "--base", "{}/base", "--adapter", "{}/adapter", "--out", "{}/base"], "OUTPUT_EXISTS", 9),
        (["extract", "--base", "{}/base", "--tuned", "{}/base", "--out", "{}/x"], "EXTRACT_NO_DIFFERENCE", 8),
    ],
)
def test_errors_have_codes(files: Path, arguments: list[str], code: str, exit_code: int) -> None:
    tensors = adapter_tensors("deepseek_v2", EXPERTS)
    del tensors[expert_key("deepseek_v2", 1, 3, "up")]
    write_adapter(files / "bad", EXPERTS, tensors=tensors)
    (files / "llama").mkdir()
    (files / "llama/config.json").write_text('{"model_type": "llama"}')
    filled = [argument.format(files) for argument in arguments]
    as_json = run(*filled, "--json")
    assert as_json.exit_code == exit_code
    error = json.loads(as_json.stdout)["error"]
    assert error["code"] == code
    assert error.keys() == {"kind", "code", "thing", "expected", "got", "remedy"}
    as_text = run(*filled)
    assert as_text.exit_code == exit_code
    assert as_text.stdout == ""
    assert as_text.stderr.startswith(f"error [{code}]")


def test_brackets_in_a_path_are_not_markup(tmp_path: Path) -> None:
    write_adapter(tmp_path / "[red]x[/red]", EXPERTS)
    assert "[red]x[/red]" in run("inspect", tmp_path / "[red]x[/red]").stdout


def test_wrong_usage_exits_with_2(files: Path) -> None:
    assert run("validate", files / "adapter").exit_code == 2
    assert run("no-such-command").exit_code == 2


def test_python_m_npu_weave() -> None:
    done = subprocess.run([sys.executable, "-m", "npu_weave", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{__version__}\n", "")


def test_bars_are_drawn_on_a_terminal_only(files: Path) -> None:
    terminal, its_end = os.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "npu_weave", "adapter", "merge", "--base", files / "base"]
    command += ["--adapter", files / "adapter", "--json", "--out"]
    done = subprocess.run([*command, files / "one"], stdout=subprocess.PIPE, stderr=its_end, text=True, check=True)
    os.close(its_end)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "merge:" in drawn and "%" in drawn
    assert json.loads(done.stdout)["replaced"] == 3
    piped = subprocess.run([*command, files / "two"], capture_output=True, text=True, check=True)
    assert piped.stderr == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB (1536 bytes)"),
        (5 << 40, "5120.0 GiB (5497558138880 bytes)"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text
