"""The walls of the house as functions over a source tree: who may import whom, and how large things may grow.

Everything here reads source text only; nothing is imported, so the checks also run where torch or an engine is
missing. `tests/unit/test_walls.py` applies them to this project and to trees with planted violations.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A room may import itself and rooms of lower floors; what else it may import is in SAME_FLOOR.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"npu_weave.errors", "npu_weave.turns", "npu_weave._C", "weave_ops"}),
    frozenset({"npu_weave.config", "npu_weave.adapters", "npu_weave.memory"}),
    frozenset({"npu_weave.experts"}),
    frozenset({"npu_weave.residency"}),
    frozenset({"npu_weave.engine", "npu_weave.observability", "npu_weave.cli"}),
)
SAME_FLOOR: dict[str, frozenset[str]] = {
    "npu_weave.engine": frozenset({"npu_weave.observability"}),
    "npu_weave.cli": frozenset({"npu_weave.engine", "npu_weave.observability"}),
}
COMPANIONS = frozenset({"weave_ops", "weave_lab", "weave_bench"})
# Foreign packages that only the named places may import.
RESERVED: dict[str, tuple[str, ...]] = {
    # besides the engine: vLLM without us, to compare with; and its MoE layers, and engines of both kinds, to be timed
    "vllm": (
        "npu_weave.engine",
        "weave_lab.demo.plain",
        "weave_bench.layers.engine_layers",
        "weave_bench.whole_engine.process",
    ),
    "vllm_ascend": ("npu_weave.engine.ascend",),
    "torch_npu": ("npu_weave.engine.ascend", "npu_weave.memory.npu_tensor", "weave_ops.ascendc"),
}
# Of torch's parts and of device packages, what a room of plain files and tensors has no business with.
DEVICE_CODE = ("torch.cuda", "torch.npu", "torch_npu", "triton", "npu_weave._C", "acl")
DEVICE_FREE = ("npu_weave.adapters", "npu_weave.errors", "npu_weave.config")
VAGUE_NAMES = frozenset({"utils", "util", "misc", "helpers", "helper", "common"})
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, whether it is a package's `__init__`, and its syntax tree."""

    name: str
    path: Path
    is_package: bool
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.name)


@dataclass(frozen=True)
class Import:
    """`importer` names `target` (a dotted name, made absolute) in its line `line`."""

    importer: Module
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer.path}:{self.line}: {self.importer.name} imports {self.target}"


def inside(name: str, prefix: str) -> bool:
    """Whether dotted `name` is `prefix` or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def room_of(name: str) -> str:
    """The room a dotted name belongs to: `npu_weave.memory.pages` -> `npu_weave.memory`."""
    if name == "npu_weave.__main__":  # `python -m npu_weave` is the command by another name
        return "npu_weave.cli"
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "npu_weave" else parts[0]


def modules(root: Path) -> list[Module]:
    """All modules of our packages below `root` (`npu_weave/` and everything in `python/`)."""
    found = []
    for base in (root, root / "python"):
        for package in sorted(base.iterdir()) if base.is_dir() else ():
            if base == root and package.name != "npu_weave":
                continue
            for path in sorted(package.rglob("*.py")):
                parts = path.relative_to(base).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if is_package else parts)
                found.append(Module(name, path, is_package, ast.parse(path.read_text(), str(path))))
    return found


def imports(module: Module, known: frozenset[str]) -> Iterator[Import]:
    """Every import of a module, also those in functions, under TYPE_CHECKING and by literal name.

    `known` holds the names of all our modules: `from package import name` counts as an import of
    `package.name` where that is one of them, else of `package`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                ours = full in known or alias.name == "_C"
                yield Import(module, full if ours or base == "torch" else base, node.lineno)
        elif isinstance(node, ast.Call) and _is_dynamic_import(node.func) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(module, first.value, node.lineno)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    keep = len(parts) - node.level + (1 if module.is_package else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _is_dynamic_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"__import__", "import_module", "find_spec"}


def import_violations(root: Path) -> list[str]:
    """Every import below `root` that goes through a wall, one line each; empty when all walls hold."""
    all_modules = modules(root)
    known = frozenset(module.name for module in all_modules)
    every = [found for module in all_modules for found in imports(module, known)]
    problems = [f"{found}: {reason}" for found in every if (reason := _forbidden(found))]
    problems += [problem for module in all_modules for problem in _device_attributes(module)]
    return problems + _circles(every)


def _forbidden(found: Import) -> str:
    importer, target = found.importer.name, found.target
    for package, allowed in RESERVED.items():
        if inside(target, package) and not any(inside(importer, place) for place in allowed):
            return f"only {' and '.join(allowed)} may touch {package}"
    if any(inside(importer, room) for room in DEVICE_FREE) and any(inside(target, part) for part in DEVICE_CODE):
        return "this room holds no device code"
    room, other = found.importer.room, room_of(target)
    if target.split(".")[0] not in COMPANIONS | {"npu_weave"} or room == other:
        return ""
    if room in COMPANIONS:
        return _companion_forbidden(room, other)
    return _floor_forbidden(room, other)


def _companion_forbidden(room: str, other: str) -> str:
    if room == "weave_bench":
        return "weave_bench starts no engine" if inside(other, "npu_weave.engine") else ""
    if inside(other, "npu_weave"):
        return "a companion package does not know npu_weave"
    return "weave_ops knows torch only" if room == "weave_ops" else ""


def _floor_forbidden(room: str, other: str) -> str:
    if room == "npu_weave" or other == "npu_weave":  # the package itself holds the version only
        return "" if other in {"npu_weave", "npu_weave.errors"} else "the top package imports no room"
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    missing = [name for name in (room, other) if name not in floor]
    if missing:
        return f"{missing[0]} stands on no floor; give it one in tests/walls.py and the design"
    if floor[other] < floor[room] or other in SAME_FLOOR.get(room, frozenset()):
        return ""
    return f"{room} (floor {floor[room]}) may not use {other} (floor {floor[other]})"


def _device_attributes(module: Module) -> list[str]:
    if not any(inside(module.name, room) for room in DEVICE_FREE):
        return []
    return [
        f"{module.path}:{node.lineno}: {module.name} uses torch.{node.attr}: this room holds no device code"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"cuda", "npu"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    ]


def _circles(every: list[Import]) -> list[str]:
    edges: dict[str, set[str]] = {}
    for found in every:
        other = room_of(found.target)
        if found.importer.room != other and other.split(".")[0] in COMPANIONS | {"npu_weave"}:
            edges.setdefault(found.importer.room, set()).add(other)
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return [f"rooms import each other in a circle: {' <- '.join(error.args[1])}"]
    return []


def size_violations(root: Path) -> list[str]:
    """Files and functions of our packages that have grown too long, one line each."""
    problems = []
    for module in modules(root):
        lines = len(module.path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            problems.append(f"{module.path}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(f"{module.path}:{node.lineno}: {node.name} has {length} lines")
    return problems


def name_violations(root: Path) -> list[str]:
    """Source files and folders whose name says nothing (`utils` and its kin), one line each."""
    places = [root / name for name in ("npu_weave", "python", "csrc", "tests", "scripts")]
    return [
        f"{path}: a name that says nothing"
        for place in places
        for path in sorted(place.rglob("*"))
        if "__pycache__" not in path.parts and path.stem.strip("_").removeprefix("test_").lower() in VAGUE_NAMES
    ]
