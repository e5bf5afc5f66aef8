"""Errors cross process boundaries as values, and docs/errors.md knows every code, no more and no fewer."""

from __future__ import annotations

import ast
import pickle
import re
from collections import defaultdict
from pathlib import Path

import pytest
from walls import Module, modules

from npu_weave import errors
from npu_weave.errors import WeaveError

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, type[WeaveError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, WeaveError)
}
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def string_constants(expression: ast.expr) -> list[str] | None:
    """The strings an expression can be, when it is a literal or a choice of literals, else None."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return [expression.value]
    if isinstance(expression, ast.IfExp):
        sides = [string_constants(expression.body), string_constants(expression.orelse)]
        return [text for side in sides if side is not None for text in side] if None not in sides else None
    return None


def tabled_codes(module: Module) -> list[str]:
    """Codes that stand first in a tuple literal of a module: its table of statuses, or of checks and their codes."""
    firsts = [node.elts[0] for node in ast.walk(module.tree) if isinstance(node, ast.Tuple) and node.elts]
    texts = [text for first in firsts for text in string_constants(first) or ()]
    return [text for text in texts if CODE.fullmatch(text)]


def raised_codes(found: list[Module]) -> tuple[dict[str, set[str]], list[str]]:
    """(code -> names of the classes it is raised with, places whose code cannot be read off the source)."""
    codes: dict[str, set[str]] = defaultdict(set)
    unreadable = []
    for module in found:
        if module.name == "npu_weave.errors":
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name not in KINDS:
                continue
            literals = string_constants(node.args[0]) if node.args else None
            if literals is None and node.args and isinstance(node.args[0], ast.Name):
                literals = tabled_codes(module)
            if not literals:
                unreadable.append(f"{module.path}:{node.lineno}: {name} with a code that is no literal")
            for literal in literals or ():
                codes[literal].add(name)
    return codes, unreadable


def documented_codes() -> dict[str, tuple[str, int]]:
    """code -> (class name, exit code), as docs/errors.md gives them: one section a class, one row a code."""
    codes: dict[str, tuple[str, int]] = {}
    section = ("", 0)
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (\w+) \(exit code (\d+)\)", line):
            section = (heading[1], int(heading[2]))
        elif row := re.match(r"\| `([A-Z0-9_]+)` \|", line):
            assert row[1] not in codes, f"{row[1]} has two rows in docs/errors.md"
            assert line.count("|") == 5, f"{row[1]} needs a meaning, a typical cause and a remedy"
            codes[row[1]] = section
    return codes


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("full", [True, False])
def test_an_error_survives_pickle_and_dict(kind: str, full: bool) -> None:
    details = {"expected": "a [2, 3]", "got": "b", "remedy": "do c"} if full else {}
    error = KINDS[kind]("SOME_CODE", "tensor x", **details)
    for copy in (pickle.loads(pickle.dumps(error)), WeaveError.from_dict(error.to_dict())):
        assert type(copy) is KINDS[kind]
        assert copy.to_dict() == error.to_dict()
        assert str(copy) == str(error)
        assert copy.exit_code == KINDS[kind].exit_code
        assert copy.args == error.args


def test_the_text_names_everything() -> None:
    error = WeaveError("SOME_CODE", "tensor x", expected="[2, 3]", got="[3, 2]", remedy="transpose it")
    assert str(error) == "[SOME_CODE] tensor x; expected [2, 3]; got [3, 2]. Remedy: transpose it"
    assert str(WeaveError("SOME_CODE", "tensor x")) == "[SOME_CODE] tensor x"


def test_an_unknown_kind_becomes_the_base_class() -> None:
    copy = WeaveError.from_dict({"kind": "FromANewerVersion", "code": "NEW_CODE", "thing": "x"})
    assert type(copy) is WeaveError
    assert (copy.code, copy.thing, copy.expected, copy.got, copy.remedy) == ("NEW_CODE", "x", "", "", "")


def test_every_code_can_be_read_off_the_source() -> None:
    codes, unreadable = raised_codes(modules(ROOT))
    assert unreadable == []
    assert [code for code in codes if not CODE.fullmatch(code)] == []


def test_a_code_belongs_to_one_class() -> None:
    codes, _ = raised_codes(modules(ROOT))
    assert {code: sorted(names) for code, names in codes.items() if len(names) > 1} == {}


def test_the_documentation_lists_exactly_the_codes_in_use() -> None:
    codes, _ = raised_codes(modules(ROOT))
    documented = documented_codes()
    assert sorted(codes.keys() - documented.keys()) == [], "raised, not in docs/errors.md"
    assert sorted(documented.keys() - codes.keys()) == [], "in docs/errors.md, raised nowhere"
    for code, names in codes.items():
        assert documented[code][0] in names, f"{code} stands in the wrong section of docs/errors.md"


def test_the_documentation_gives_the_right_exit_codes() -> None:
    sections = set(documented_codes().values())
    assert sections
    assert sections == {(name, KINDS[name].exit_code) for name, _ in sections}


TABLE = """
for code, wrong in (("C_ONE", 1), ("C_TWO", 2), ("lower", 3)):
    raise IntegrityError(code, "x")
"""


def test_codes_are_found_in_source(tmp_path: Path) -> None:
    """The collector itself: literals, choices of literals, tables, and codes that it cannot read."""
    source = (
        "from npu_weave import errors\nfrom npu_weave.errors import ConfigError, DriverError\n"
        "def f(c, code):\n"
        "    raise ConfigError('A_ONE' if c else 'A_TWO', 'x')\n"
        "    errors.DriverError('B_ONE', 'x')\n"
        "    ValueError('NOT_OURS')\n"
        "    DriverError(code, 'x')\n"
    )
    module = Module("npu_weave.memory.x", tmp_path / "x.py", False, ast.parse(source))
    codes, unreadable = raised_codes([module])
    table = Module("npu_weave.memory.y", tmp_path / "y.py", False, ast.parse(TABLE))
    assert raised_codes([table]) == ({"C_ONE": {"IntegrityError"}, "C_TWO": {"IntegrityError"}}, [])
    assert codes == {"A_ONE": {"ConfigError"}, "A_TWO": {"ConfigError"}, "B_ONE": {"DriverError"}}
    assert len(unreadable) == 1
    assert "x.py:7:" in unreadable[0]
