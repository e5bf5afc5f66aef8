"""The walls between rooms hold here, and the checks that say so do see a violation when there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from walls import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    import_violations,
    modules,
    name_violations,
    room_of,
    size_violations,
)

ROOT = Path(__file__).resolve().parents[2]


def plant(root: Path, files: dict[str, str]) -> Path:
    """Writes `files` (path: text) below `root`, with an `__init__.py` in every package folder on the way."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        folder = path.parent
        while folder not in (root, root / "python"):
            (folder / "__init__.py").touch()
            folder = folder.parent
    return root


def test_no_import_goes_through_a_wall() -> None:
    assert import_violations(ROOT) == []


def test_files_and_functions_stay_readable() -> None:
    assert size_violations(ROOT) == []


def test_names_say_something() -> None:
    assert name_violations(ROOT) == []


def test_all_packages_are_looked_at() -> None:
    seen = {room_of(module.name) for module in modules(ROOT)}
    assert {"npu_weave.errors", "npu_weave.adapters", "npu_weave.memory", "npu_weave.engine", "weave_ops"} <= seen


ALLOWED = {
    "npu_weave/__init__.py": "from npu_weave.errors import WeaveError\n",
    "npu_weave/__main__.py": "from npu_weave.cli.main import app\n",
    "npu_weave/errors.py": "import dataclasses\n",
    "npu_weave/config.py": "from npu_weave.errors import WeaveError\nfrom npu_weave import __version__\n",
    "npu_weave/adapters/layout.py": "import torch\nfrom ..errors import WeaveError\nfrom . import catalog\n",
    "npu_weave/adapters/catalog.py": "from weave_ops import reference\n",
    "npu_weave/memory/pages.py": "from npu_weave import _C\nimport torch.cuda\n",
    "npu_weave/experts/rows.py": "from npu_weave.memory.pages import Page\nfrom npu_weave.adapters import layout\n",
    "npu_weave/residency/slots.py": "from ..experts.rows import Rows\nfrom npu_weave import config\n",
    "npu_weave/observability/metrics.py": "from npu_weave.residency import slots\n",
    "npu_weave/engine/vllm/plugin.py": "import vllm.lora\nfrom ...observability import metrics\n",
    "npu_weave/engine/ascend/port.py": "import torch_npu, vllm_ascend\n",
    "npu_weave/cli/main.py": "from npu_weave.engine.vllm import plugin\nfrom npu_weave.observability import metrics\n",
    "python/weave_ops/reference.py": "import torch\n",
    "python/weave_ops/ascendc/gating.py": "import torch_npu\n",
    "python/weave_lab/train.py": "import torch, transformers\nfrom weave_ops import reference\n",
}


def test_what_the_design_allows_is_allowed(tmp_path: Path) -> None:
    assert import_violations(plant(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("npu_weave/adapters/bad.py", "import vllm", "may touch vllm"),
        ("npu_weave/adapters/bad.py", "import torch_npu", "may touch torch_npu"),
        ("npu_weave/adapters/bad.py", "from torch import cuda", "no device code"),
        ("npu_weave/adapters/bad.py", "import torch\nx = torch.cuda.current_device()", "no device code"),
        ("npu_weave/adapters/bad.py", "import triton.language as tl", "no device code"),
        ("npu_weave/adapters/bad.py", "from npu_weave import _C", "no device code"),
        ("npu_weave/adapters/bad.py", "from ..memory.pages import Page", "may not use npu_weave.memory"),
        ("npu_weave/adapters/bad.py", "from npu_weave import memory", "may not use npu_weave.memory"),
        ("npu_weave/adapters/bad.py", "import npu_weave.config", "may not use npu_weave.config"),
        ("npu_weave/adapters/deep/bad.py", "from ... import memory", "may not use npu_weave.memory"),
        ("npu_weave/memory/bad.py", "from npu_weave.adapters import layout", "may not use npu_weave.adapters"),
        ("npu_weave/memory/bad.py", "def f():\n    from vllm.lora import request", "may touch vllm"),
        ("npu_weave/memory/bad.py", "__import__('vllm')", "may touch vllm"),
        ("npu_weave/experts/bad.py", "import importlib\nimportlib.import_module('vllm.lora')", "may touch vllm"),
        ("npu_weave/experts/bad.py", "from npu_weave.residency import slots", "may not use npu_weave.residency"),
        ("npu_weave/residency/bad.py", "from npu_weave.engine.vllm import plugin", "may not use npu_weave.engine"),
        ("npu_weave/residency/bad.py", "from ..observability import metrics", "may not use npu_weave.observability"),
        ("npu_weave/observability/bad.py", "from npu_weave import engine", "may not use npu_weave.engine"),
        ("npu_weave/engine/vllm/bad.py", "from npu_weave.cli import main", "may not use npu_weave.cli"),
        ("npu_weave/engine/vllm/bad.py", "import torch_npu", "may touch torch_npu"),
        ("npu_weave/engine/vllm/bad.py", "import vllm_ascend.ops", "may touch vllm_ascend"),
        ("npu_weave/cli/bad.py", "from vllm import LLM", "may touch vllm"),
        ("npu_weave/errors.py", "from npu_weave import config", "may not use npu_weave.config"),
        ("npu_weave/__init__.py", "from npu_weave.memory import pages", "imports no room"),
        ("npu_weave/attic/bad.py", "from npu_weave.errors import WeaveError", "stands on no floor"),
        ("python/weave_ops/bad.py", "import vllm", "may touch vllm"),
        ("python/weave_ops/bad.py", "from weave_lab import train", "knows torch only"),
        ("python/weave_ops/bad.py", "from npu_weave.errors import WeaveError", "does not know npu_weave"),
        ("python/weave_lab/bad.py", "import npu_weave", "does not know npu_weave"),
        ("python/weave_bench/bad.py", "import vllm", "may touch vllm"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, path: str, text: str, reason: str) -> None:
    plant(tmp_path, ALLOWED | {path: text})
    problems = [problem for problem in import_violations(tmp_path) if not problem.startswith("rooms import")]
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{tmp_path / path}:"), problems
    assert reason in problems[0]


def test_type_checking_imports_count(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vllm import LLM\n"
    problems = import_violations(plant(tmp_path, {"npu_weave/memory/bad.py": text}))
    assert len(problems) == 1
    assert ":3:" in problems[0]


def test_a_circle_is_found_and_only_its_rooms_are_named(tmp_path: Path) -> None:
    files = {
        "npu_weave/engine/port.py": "from npu_weave.observability import metrics\n",
        "npu_weave/observability/metrics.py": "from npu_weave.engine import port\n",
        "npu_weave/cli/main.py": "from npu_weave.engine import port\n",
    }
    circles = [problem for problem in import_violations(plant(tmp_path, files)) if problem.startswith("rooms import")]
    assert len(circles) == 1
    assert {"npu_weave.engine", "npu_weave.observability"} <= set(circles[0].split())
    assert "npu_weave.cli" not in circles[0]


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    fits = "def fits():\n" + "    pass\n" * (MAX_FUNCTION_LINES - 1)
    body = "async def grown():\n" + "    pass\n" * MAX_FUNCTION_LINES
    files = {
        "npu_weave/long.py": "\n" * (MAX_FILE_LINES + 1),
        "npu_weave/full.py": "\n" * MAX_FILE_LINES,
        "npu_weave/fits.py": fits,
        "python/weave_lab/body.py": body,
    }
    problems = size_violations(plant(tmp_path, files))
    assert len(problems) == 2
    assert "long.py" in problems[0]
    assert "grown has 71 lines" in problems[1]


@pytest.mark.parametrize(
    "path", ["npu_weave/utils.py", "csrc/common/x.cpp", "tests/unit/test_misc.py", "csrc/Helpers.h"]
)
def test_vague_names_are_found(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert len(name_violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("room", "banned"),
    [
        ("npu_weave.errors", ("vllm", "torch", "torch_npu")),
        ("npu_weave.config", ("vllm", "torch_npu")),
        ("npu_weave.adapters", ("vllm", "torch_npu", "npu_weave.memory", "npu_weave._C")),
        ("npu_weave.memory", ("vllm", "torch_npu", "npu_weave.adapters")),
        ("npu_weave.experts", ("vllm", "torch_npu")),
        ("npu_weave.residency", ("vllm", "torch_npu")),
        ("weave_ops", ("vllm", "torch_npu", "npu_weave")),
        ("weave_lab", ("vllm", "torch_npu", "npu_weave")),
    ],
)
def test_importing_a_room_loads_nothing_forbidden(room: str, banned: tuple[str, ...]) -> None:
    """The proof at run time, through everything our dependencies import in their turn."""
    names = [module.name for module in modules(ROOT) if module.name == room or module.name.startswith(room + ".")]
    assert names, f"{room} has no modules"
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        f"print(*[name for name in {banned!r} if name in sys.modules])\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
