"""How an operator is declared: with the schema of the real one, and refusing whatever it does not compute.

The schema names every parameter and its default. The Python function takes those that it computes; a caller may give
the others only their default, so that no option is ever passed over in silence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class RefusedError(RuntimeError):
    """A call that the emulation does not compute, or that breaks a documented rule of the operator."""


class _BrokenRuleError(Exception):
    """Raised by `check`, which does not know in which operator it is."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Makes what `check` refuses inside a refusal of `name`."""
    try:
        yield
    except _BrokenRuleError as broken:
        raise RefusedError(f"{name}: {broken}") from None


OPERATORS: dict[str, torch._C.FunctionSchema] = {}
"""The schema of every operator, by its name in torch_npu."""

CALLS: dict[str, int] = {}
"""How often each operator was called in this process, for tests that must know which path an engine took."""


def check(holds: bool, argument: str, rule: str) -> None:
    """Refuses the call of the operator around it, naming `argument`, unless the rule holds."""
    if not holds:
        raise _BrokenRuleError(f"{argument}: {rule}")


def operator(schema: str, home: str = "torch_npu") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function the operator that `schema` declares, as the real library spells it.

    Raises RefusedError, naming operator and argument: an argument that the schema does not have or that is missing, a
    value of the wrong kind, a value other than the default for what the function does not take, and every rule that
    the function states with `check`.
    """
    parsed = torch._C.parse_schema(schema)

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        name = f"{home}.{parsed.name}"
        computed = set(inspect.signature(function).parameters)
        unknown = computed - {argument.name for argument in parsed.arguments}
        if unknown:
            raise TypeError(f"{name} has no parameter {', '.join(sorted(unknown))}")

        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            CALLS[parsed.name] = CALLS.get(parsed.name, 0) + 1
            with naming(name):
                arguments = _bind(parsed, positional, named)
                for argument in parsed.arguments:
                    value = arguments[argument.name]
                    if argument.name in computed:
                        fits = _fits(str(argument.type), value) or _is_type(argument, value)
                        check(fits, argument.name, f"{argument.type}, not {_kind(value)}")
                    else:
                        check(
                            _is_default(argument, value),
                            argument.name,
                            f"only the default ({argument.default_value}) is emulated, not {value!r}",
                        )
                return function(**{key: value for key, value in arguments.items() if key in computed})

        OPERATORS[parsed.name] = parsed
        return call

    return declare


class NotEmulated:
    """Stands for an operator of torch_npu that nobody wrote: it can be named, and refuses to be called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RefusedError(f"torch_npu.{self.name} is not emulated")

    def __getattr__(self, overload: str) -> NotEmulated:
        if overload.startswith("__"):
            raise AttributeError(overload)
        return NotEmulated(f"{self.name}.{overload}")


def _bind(schema: torch._C.FunctionSchema, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    by_position = [argument for argument in schema.arguments if not argument.kwarg_only]
    check(len(positional) <= len(by_position), "arguments", f"at most {len(by_position)} by position")
    given = {argument.name: value for argument, value in zip(by_position, positional, strict=False)}
    names = {argument.name for argument in schema.arguments}
    for name, value in named.items():
        check(name in names, name, "no such parameter")
        check(name not in given, name, "given twice")
        given[name] = value
    for argument in schema.arguments:
        if argument.name not in given:
            check(argument.has_default_value(), argument.name, "is missing")
            given[argument.name] = argument.default_value
    return given


def _is_type(argument: torch._C.Argument, value: Any) -> bool:
    """Whether `value` is a type of elements where one belongs: schemas call it an int, and callers pass a dtype."""
    return str(argument.name).endswith(("dtype", "dst_type")) and isinstance(value, torch.dtype)


def _is_default(argument: torch._C.Argument, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return False
    default = argument.default_value if argument.has_default_value() else None
    return value is None if default is None else bool(value == default)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, int | float | str) else type(value).__name__


def _fits(kind: str, value: Any) -> bool:
    """Whether `value` may be passed for a parameter of the schema type `kind`."""
    if kind.startswith("Optional["):
        return value is None or _fits(kind[len("Optional[") : -1], value)
    if kind.startswith("List["):
        element = kind[len("List[") : -1]
        return isinstance(value, list | tuple) and all(_fits(element, item) for item in value)
    return isinstance(value, _PYTHON_TYPES[kind]) and not (kind in {"int", "float"} and isinstance(value, bool))


_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (torch.Tensor,),
    "int": (int,),
    "SymInt": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}
