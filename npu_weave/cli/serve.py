"""`npu-weave serve`: vLLM's server with adapters, one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from npu_weave.cli.reporting import human_bytes, print_fields, reported_errors
from npu_weave.errors import ConfigError

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


Adapters = Annotated[
    list[str] | None, typer.Option(metavar="NAME=PATH", help="Adapter to serve, by name. May be repeated.")
]
AdapterRoots = Annotated[
    list[Path] | None,
    typer.Option(help="Allow loading and unloading at run time over HTTP, from below this directory. Repeatable."),
]
Catalog = Annotated[
    str | None,
    typer.Option(help="Where adapters are found by name on request: a directory, or a URL such as hf://org."),
]
PinFile = Annotated[
    Path | None, typer.Option(help="JSON file of adapter names and the content digests they must have.")
]
HostCache = Annotated[
    str | None, typer.Option(help="Host memory per worker for adapters not in use, e.g. 16GiB; 0 keeps none.")
]
MaxRequests = Annotated[
    int | None, typer.Option(help="Requests of one adapter at once; more of them wait, others pass them by.")
]
DrainTimeout = Annotated[
    float | None,
    typer.Option(help="Seconds that requests may go on with an adapter out of service; without it, to their end."),
]
LoadRest = Annotated[
    float | None,
    typer.Option(help="How long a load rests while requests run, by how long it worked; 0: it never does."),
]


def serve(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Base model: a checkpoint directory or a hub id.")],
    adapter: Adapters = None,
    adapter_root: AdapterRoots = None,
    catalog: Catalog = None,
    catalog_cache: Annotated[Path | None, typer.Option(help="Directory for adapters of a catalogue at a URL.")] = None,
    catalog_cache_size: Annotated[str | None, typer.Option(help="Limit on that directory, e.g. 200GiB.")] = None,
    pins: PinFile = None,
    adapter_rows: Annotated[int | None, typer.Option(help="Rows per MoE layer set aside for adapters.")] = None,
    adapter_memory: Annotated[str | None, typer.Option(help="Limit on adapter memory per worker, e.g. 4GiB.")] = None,
    host_cache: HostCache = None,
    max_requests_per_adapter: MaxRequests = None,
    drain_timeout: DrainTimeout = None,
    load_rest: LoadRest = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print vLLM's arguments.")] = False,
) -> None:
    """Serve a base model and its adapters over an OpenAI-compatible API.

    Every option of `vllm serve` is taken as well and passed on, e.g. --port 8000 --max-loras 8.
    """
    roots = [Path(root) for root in adapter_root or []]
    with reported_errors(as_json=False):
        adapters = _named(adapter or [])
        _report(base, adapters, roots, catalog)
        from npu_weave.engine.vllm.launch import serve_arguments

        limits = {
            "adapter_rows": adapter_rows,
            "adapter_memory": adapter_memory,
            "host_cache": host_cache,
            "max_requests_per_adapter": max_requests_per_adapter,
            "drain_timeout": drain_timeout,
            "load_rest": load_rest,
            "pins": None if pins is None else str(pins.expanduser().absolute()),
            "catalog": catalog,
            "catalog_cache": None if catalog_cache is None else str(catalog_cache),
            "catalog_cache_size": catalog_cache_size,
        }
        weave: dict[str, Any] = {"allowed_roots": [str(path) for path in [*adapters.values(), *roots]]}
        weave |= {name: limit for name, limit in limits.items() if limit is not None}
        arguments = serve_arguments(
            base,
            {name: str(path) for name, path in adapters.items()},
            context.args,
            weave=weave,
            # one slot an adapter; some more where adapters may come later
            max_loras=max(len(adapters), 4 if roots or catalog else 1),
        )
    if dry_run:
        print_fields("vllm serve", {"arguments": shlex.join(arguments)})
        return
    from npu_weave.engine.vllm.launch import serve as launch

    launch(arguments, runtime_loading=bool(roots))


def _named(values: list[str]) -> dict[str, Path]:
    """Name -> directory from ``NAME=PATH`` values."""
    from npu_weave.adapters.paths import resolve_adapter_path, validate_adapter_name

    adapters: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or not path:
            raise ConfigError(
                "ADAPTER_ARGUMENT_INVALID", f"--adapter {value}", expected="NAME=PATH", remedy="name the adapter"
            )
        if name in adapters:
            raise ConfigError(
                "ADAPTER_ARGUMENT_INVALID", f"--adapter {value}", expected="each name once", got=f"{name!r} twice"
            )
        validate_adapter_name(name)
        adapters[name] = resolve_adapter_path(path, None)
    return adapters


def _report(base: str, adapters: dict[str, Path], roots: list[Path], catalog: str | None) -> None:
    """Check every adapter against the base before the engine starts, and say what will be served."""
    from npu_weave.adapters import base_fingerprint, open_adapter, open_checkpoint

    lines = {}
    if Path(base).is_dir():
        checkpoint = open_checkpoint(base)
        fingerprint = base_fingerprint(checkpoint)
        for name, path in adapters.items():
            found = open_adapter(path, checkpoint.geometry, base_fingerprint=fingerprint)
            experts = sum(len(ids) for ids in found.experts.values())
            lines[name] = f"{experts} experts, {human_bytes(found.nbytes)}, {path}"
        geometry = checkpoint.geometry
        lines["base"] = (
            f"{geometry.model_type}, {len(geometry.moe_layers)} MoE layers of {geometry.num_experts} experts, {base}"
        )
    else:
        lines = {name: str(path) for name, path in adapters.items()} | {"base": base}
    lines["run-time loading"] = f"below {', '.join(map(str, roots))}" if roots else "off (--adapter-root DIR allows it)"
    lines["catalogue"] = catalog or "none (--catalog finds adapters by name when requests name them)"
    print_fields("npu-weave serve", lines)
