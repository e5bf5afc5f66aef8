"""`npu-weave memory`: physical memory under expert weights, measured, beside what other designs would need.

`npu_weave.residency` is imported inside the command: it brings torch, and `--help` should not wait for that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npu_weave.cli.memory_report import footprint_document, print_footprint
from npu_weave.cli.progress_bars import progress_bars
from npu_weave.cli.reporting import print_json, reported_errors
from npu_weave.errors import ConfigError

if TYPE_CHECKING:
    from npu_weave.residency.footprint_source import FootprintSource

SMALL_MODEL = Path("models/weave-tiny")
CACHED_MODEL = Path("npu-weave/weave-tiny")
DEFAULT_GEOMETRY = "deepseek-v2-lite"


def memory(
    base: Annotated[Path | None, typer.Option(help="Directory of a base model's checkpoint.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="Directory of an adapter of it; repeatable.")] = None,
    geometry: Annotated[str | None, typer.Option(help=f"A known model's shape: {DEFAULT_GEOMETRY}.")] = None,
    expert_config: Annotated[
        list[Path] | None, typer.Option(help="ESFT expert_cfg.json for --geometry; repeatable. None: synthetic ones.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="MoE layers to measure. Default: what fits in a third of the free memory.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, errors included.")
    ] = False,
) -> None:
    """Measure what expert weights and adapters cost in physical memory.

    Without --base and --geometry: the project's small model, where it has been made, and DeepSeek-V2-Lite's shape.
    """
    from npu_weave.residency.footprint import measure_footprint

    with reported_errors(as_json), progress_bars() as progress:
        selected = _sources(base, adapter or [], geometry, expert_config or [])
        # The small model is always measured whole when nobody asked for it.
        asked = [layers if base or source.origin != "adapters" else None for source in selected]
        found = [
            measure_footprint(source, layers=count, progress=progress)
            for source, count in zip(selected, asked, strict=True)
        ]
    if as_json:
        print_json({"reports": [footprint_document(footprint) for footprint in found]})
        return
    for footprint in found:
        print_footprint(footprint)


def _sources(
    base: Path | None, adapters: list[Path], geometry: str | None, configs: list[Path]
) -> list[FootprintSource]:
    from npu_weave.residency.footprint_source import source_from_geometry, source_from_model

    if adapters and base is None:
        raise ConfigError("FOOTPRINT_ARGUMENT", "--adapter", expected="--base beside it", got="no --base")
    if configs and geometry is None:
        raise ConfigError("FOOTPRINT_ARGUMENT", "--expert-config", expected="--geometry beside it", got="no --geometry")
    sources = []
    if base is None and geometry is None:
        geometry = DEFAULT_GEOMETRY
        small = _small_model()
        if small is None:
            typer.echo(f"no small model in {SMALL_MODEL}: only the geometry is measured", err=True)
        else:
            base, adapters = small / "base", sorted(path for path in (small / "adapters").glob("*") if path.is_dir())
    if base is not None:
        sources.append(source_from_model(base, adapters))
    if geometry is not None:
        sources.append(source_from_geometry(geometry, configs))
    return sources


def _small_model() -> Path | None:
    """The project's own small model: below the working directory, beside the package in a checkout, or in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = (SMALL_MODEL, Path(__file__).resolve().parents[2] / SMALL_MODEL, cache / CACHED_MODEL)
    return next((place for place in places if (place / "base" / "config.json").is_file()), None)
