"""`npu-weave adapter`: look at adapters, check them, make them, merge them.

`npu_weave.adapters` is imported inside the commands: it brings torch, and `--help` should not wait for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npu_weave.cli.progress_bars import progress_bars
from npu_weave.cli.reporting import human_bytes, print_fields, print_json, reported_errors

app = typer.Typer(no_args_is_help=True, help="Inspect, validate, extract and merge ESFT adapters on disk.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, errors included.")]
Base = Annotated[Path, typer.Option(help="Directory of the base model's checkpoint.")]


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Directory of the adapter.")],
    as_json: AsJson = False,
) -> None:
    """Show what an adapter contains. Needs no base model; reads every byte for the digest."""
    from npu_weave.adapters.summary import summarize

    with reported_errors(as_json), progress_bars() as progress:
        summary = summarize(path, progress)
    if as_json:
        print_json(summary.to_dict())
        return
    shapes = "; ".join(f"{name} {', '.join(str(list(one)) for one in found)}" for name, found in summary.shapes.items())
    files = "1 file" if len(summary.shards) == 1 else f"{len(summary.shards)} files"
    print_fields(
        summary.path,
        {
            "experts": f"{summary.total} in {sum(1 for ids in summary.experts.values() if ids)} layers, "
            f"at most {summary.largest} in one, sparsity {summary.sparsity:.2f}",
            "size": f"{human_bytes(summary.nbytes)} in {files}",
            "weights": f"{', '.join(summary.dtypes)}; {shapes}",
            "base": summary.base_fingerprint or "not noted",
            "digest": summary.digest,
        }
        | {f"layer {layer}": " ".join(map(str, ids)) or "-" for layer, ids in summary.experts.items()},
    )


@app.command()
def validate(
    path: Annotated[str, typer.Argument(help="Directory of the adapter.")],
    base: Base,
    check_finite: Annotated[bool, typer.Option("--check-finite", help="Also read all weights, refuse NaN.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that an adapter can be served on a base model. Reads headers, and the base's routers."""
    from npu_weave import adapters

    with reported_errors(as_json), progress_bars() as progress:
        checkpoint = adapters.open_checkpoint(base)
        fingerprint = adapters.base_fingerprint(checkpoint)
        adapter = adapters.open_adapter(path, checkpoint.geometry, base_fingerprint=fingerprint)
        if check_finite:
            adapters.check_finite(adapter, progress)
    noted = adapter.layout.config.npu_weave.base_fingerprint is not None
    total = sum(len(ids) for ids in adapter.experts.values())
    if as_json:
        print_json(
            {
                "valid": True,
                "path": str(adapter.path),
                "base": str(base),
                "base_fingerprint": fingerprint,
                "base_fingerprint_noted": noted,
                "finite": True if check_finite else None,
                "total": total,
                "nbytes": adapter.nbytes,
            }
        )
        return
    print_fields(
        f"{adapter.path} is a valid adapter of {base}",
        {
            "experts": f"{total} in {len(adapter.experts)} layers",
            "size": human_bytes(adapter.nbytes),
            "base": "the one it was extracted from" if noted else "fits; the adapter does not note its base",
            "weights": "all finite" if check_finite else "not read (--check-finite reads them)",
        },
    )


@app.command()
def extract(
    base: Base,
    tuned: Annotated[Path, typer.Option(help="Directory of the tuned full checkpoint.")],
    out: Annotated[Path, typer.Option(help="Directory to make; must be missing or empty.")],
    as_json: AsJson = False,
) -> None:
    """Make an adapter of the routed experts in which a tuned checkpoint differs from its base."""
    from npu_weave import adapters

    with reported_errors(as_json), progress_bars() as progress:
        adapter = adapters.extract(base, tuned, out, progress=progress)
    total = sum(len(ids) for ids in adapter.experts.values())
    if as_json:
        print_json(
            {
                "path": str(adapter.path),
                "experts": adapter.experts,
                "total": total,
                "nbytes": adapter.nbytes,
                "base_fingerprint": adapter.layout.config.npu_weave.base_fingerprint,
            }
        )
        return
    print_fields(
        f"wrote {adapter.path}",
        {"experts": f"{total} in {len(adapter.experts)} layers", "size": human_bytes(adapter.nbytes)},
    )


@app.command()
def merge(
    base: Base,
    adapter: Annotated[str, typer.Option(help="Directory of the adapter.")],
    out: Annotated[Path, typer.Option(help="Directory to make; must be missing or empty.")],
    as_json: AsJson = False,
) -> None:
    """Write the full checkpoint of a base model with an adapter's experts in place."""
    from npu_weave import adapters

    with reported_errors(as_json), progress_bars() as progress:
        merged = adapters.merge(base, adapter, out, progress=progress)
    total = sum(len(ids) for ids in merged.experts.values())
    if as_json:
        print_json({"path": str(out.resolve()), "adapter": str(merged.path), "replaced": total})
        return
    print_fields(f"wrote {out.resolve()}", {"experts replaced": str(total), "adapter": str(merged.path)})
