"""`npu-weave plan`: what a base model and adapters need on a device, and what is left for the KV cache.

`npu_weave.residency` is imported inside the command: it brings torch, and `--help` should not wait for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npu_weave.cli.plan_report import paper_document, plan_document, print_paper, print_plan
from npu_weave.cli.reporting import print_json, reported_errors
from npu_weave.config import parse_size
from npu_weave.errors import ConfigError

if TYPE_CHECKING:
    from npu_weave.residency.plan import Plan

OVERHEAD = "4GiB"


def plan(
    base: Annotated[
        Path | None, typer.Option(help="Base model: a checkpoint's directory, or its config.json; needs no weights.")
    ] = None,
    device_memory: Annotated[str | None, typer.Option(help="Memory of one device, e.g. 64GiB.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="An adapter's directory, an expert_cfg.json, or a directory of either; repeatable.",
        ),
    ] = None,
    adapters: Annotated[int | None, typer.Option(help="Plan for so many adapters, like those given in turn.")] = None,
    copies: Annotated[int | None, typer.Option(help="Plan for so many times the adapters given.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of the device that the engine may use.")] = 0.9,
    overhead: Annotated[
        str, typer.Option(help="Memory of the engine beside weights and KV cache: activations, graphs, buffers.")
    ] = OVERHEAD,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens the KV cache must hold at least. Default: the model's longest request.")
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Devices that the model is split over.")] = 1,
    e_max: Annotated[
        int | None, typer.Option(help="Rows an adapter takes in each layer of a padded tensor. Default: the tightest.")
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Instead, compute the ExpertWeave paper's memory figure beside what it prints."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, errors included.")
    ] = False,
) -> None:
    """Plan memory: base weights, adapters, what is left for the KV cache, and the settings to start with.

    All figures are of one device. See docs/planning.md.
    """
    with reported_errors(as_json):
        if paper:
            if base or device_memory or adapter:
                raise ConfigError("PLAN_ARGUMENT", "--paper", expected="no model, device or adapter beside it")
            _paper(as_json)
            return
        if base is None or device_memory is None:
            missing = "--base" if base is None else "--device-memory"
            raise ConfigError(
                "PLAN_ARGUMENT", missing, expected="--base and --device-memory, or --paper", got="nothing"
            )
        found = _plan(
            base,
            adapter or [],
            count=(adapters, copies),
            sizes=(_size("--device-memory", device_memory), _size("--overhead", overhead)),
            utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            ranks=tensor_parallel_size,
            e_max=e_max,
        )
        if as_json:
            print_json(plan_document(found))
        else:
            print_plan(found)


def _plan(
    base: Path,
    values: list[str],
    *,
    count: tuple[int | None, int | None],
    sizes: tuple[int, int],
    utilization: float,
    max_model_len: int | None,
    ranks: int,
    e_max: int | None,
) -> Plan:
    from npu_weave.residency.plan import Budget, make_plan
    from npu_weave.residency.plan_base import base_from_path
    from npu_weave.residency.plan_source import read_kinds

    model = base_from_path(base, ranks=ranks)
    kinds = read_kinds(values, model.geometry)
    budget = Budget(sizes[0], utilization, sizes[1], model.max_model_len if max_model_len is None else max_model_len)
    return make_plan(model, kinds, budget, count=_count(*count, len(kinds)), e_max=e_max)


def _paper(as_json: bool) -> None:
    from npu_weave.residency.plan_paper import paper_figures

    figures = paper_figures()
    if as_json:
        print_json(paper_document(figures))
    else:
        print_paper(figures)


def _count(adapters: int | None, copies: int | None, kinds: int) -> int | None:
    if adapters is not None and copies is not None:
        raise ConfigError("PLAN_ARGUMENT", "--adapters and --copies", expected="one of the two", got="both")
    if copies is None:
        return adapters
    if copies < 1 or not kinds:
        raise ConfigError(
            "PLAN_ARGUMENT", "--copies", expected="a positive number, and --adapter beside it", got=str(copies)
        )
    return copies * kinds


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as reason:
        raise ConfigError("PLAN_ARGUMENT", option, expected="a size like 64GiB", got=str(reason)) from None
