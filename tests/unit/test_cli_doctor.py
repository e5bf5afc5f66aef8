"""`npu-weave doctor`: what it finds here, and that something wrong ends it with 1."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from npu_weave.cli.main import app
from npu_weave.engine.ascend import limits
from npu_weave.engine.vllm import patches
from npu_weave.errors import DriverError
from npu_weave.memory import Driver, HostDriver

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def only_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was looked for in vain is not looked for again: other tests load emulated ones later."""

    def open_host(device: torch.device) -> Driver:
        if device.type == "cpu":
            return HostDriver()
        raise DriverError("DRIVER_UNAVAILABLE", str(device), got=f"no library for {device.type}")

    monkeypatch.setattr("npu_weave.engine.diagnosis.open_driver", open_host)


def findings(*options: str, code: int = 0) -> dict[tuple[str, str], dict[str, Any]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *options])
    assert result.exit_code == code, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["findings"]
    return {(each["topic"], each["thing"]): each for each in found}


def test_what_is_here_is_found() -> None:
    found = findings()
    assert found["versions", "torch"]["detail"] == importlib.metadata.version("torch") == torch.__version__
    assert found["versions", "engine"]["detail"] == "vLLM 0.32.0, served on cpu"
    assert found["versions", "torch-npu"]["state"] == "absent"
    assert found["drivers", "host"] == {"topic": "drivers", "thing": "host", "state": "ok", "detail": "pages of 2 MiB"}
    assert found["drivers", "npu"]["state"] == found["drivers", "cuda"]["state"] == "absent"
    hooks = {thing: each["detail"] for (topic, thing), each in found.items() if topic == "hooks"}
    assert hooks == {patch.module: "applied" for patch in patches.PATCHES}
    assert found["operators", "cpu"]["state"] == "ok"


def test_drivers_are_looked_for_in_the_system() -> None:
    """In a process of its own, without the stand-in above."""
    done = subprocess.run(
        [sys.executable, "-m", "npu_weave", "doctor", "--json"], capture_output=True, text=True, check=True, timeout=300
    )
    found = {each["thing"]: each for each in json.loads(done.stdout)["findings"] if each["topic"] == "drivers"}
    assert found["host"]["state"] == "ok"
    assert "libascendcl.so" in found["npu"]["detail"]


def test_a_refused_hook_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(patches._applied, "vllm.v1.engine.core", "refused: no attribute 'post_step'")
    found = findings(code=1)
    assert found["hooks", "vllm.v1.engine.core"]["state"] == "wrong"
    assert "post_step" in found["hooks", "vllm.v1.engine.core"]["detail"]


def test_a_library_that_is_not_there_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEAVE_ASCENDC_LIBRARY", str(tmp_path / "no.so"))
    assert findings(code=1)["operators", "npu"]["state"] == "wrong"


def test_an_unknown_engine_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.31.0")
    engine = findings(code=1)["versions", "engine"]
    assert engine["state"] == "wrong" and "0.31.0 is not supported; >=0.23,<0.24 or" in engine["detail"]


@pytest.mark.parametrize(
    ("options", "thing", "state", "detail"),
    [
        ((), "npu, 1 rank", "ok", "1024 rows a rank, as a grouped matmul takes 1024 groups"),
        (("--experts", "64"), "npu, 1 rank", "ok", "960 for adapters beside 64 base experts"),
        (("--expert-parallel", "8", "--experts", "256"), "npu, 8 ranks with MC2", "ok", "96 for adapters beside 32"),
        (("--expert-parallel", "16"), "npu, 16 ranks", "ok", "640 rows a rank, as routing takes 10240 experts"),
        (("--expert-parallel", "8", "--experts", "2000"), "npu, 8 ranks with MC2", "wrong", "128 rows a rank"),
    ],
)
def test_limits(options: tuple[str, ...], thing: str, state: str, detail: str) -> None:
    found = findings(*options, code=1 if state == "wrong" else 0)["limits", thing]
    assert found["state"] == state and detail in found["detail"]


def test_the_tightest_limit_is_named() -> None:
    assert limits.row_limit(1, mc2=True).rows == 1024, "MC2 needs several ranks"
    assert limits.row_limit(2, mc2=True).rows == 512
    assert limits.row_limit(2, mc2=False).rows == 1024
    assert limits.row_limit(20, mc2=False).rows == 512
