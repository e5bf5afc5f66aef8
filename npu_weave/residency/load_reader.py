"""From files to kernel layout: what a load does before it needs the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.adapters.paths import resolve_adapter_path
from npu_weave.errors import AdapterError, WeaveError
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.experts.placement import ONE_RANK, ExpertPlacement
from npu_weave.experts.port import MoELayerPort
from npu_weave.residency.background_process import twice_if_lost
from npu_weave.residency.expert_reads import AdapterSource
from npu_weave.residency.load_identity import Identity, directory_identity


class AdapterReader:
    """Reads adapters for one worker. Holds no state of any load; may run on a thread of its own."""

    def __init__(
        self,
        source: AdapterSource,
        ports: Mapping[int, MoELayerPort],
        *,
        allowed_roots: Sequence[Path] | None = None,
        placement: ExpertPlacement = ONE_RANK,
    ) -> None:
        """
        Args:
            source: reads and hashes; what it reads is packed here.
        """
        self._source = source
        self._ports = ports
        self._placement = placement
        self._allowed_roots = allowed_roots

    def read(
        self, name: str, path: str, digest: str, identity: Identity | None, cancelled: Callable[[], bool]
    ) -> PackedAdapter:
        """Validate and read the adapter at `path`, every byte once, and pack what this rank holds.

        What other ranks hold is read too: its digests decide which rows are shared there.

        Args:
            name: for messages.
            digest: the content it must have; empty for any.
            identity: the state its directory must be in; None for any.
            cancelled: asked between experts; the read then ends early.

        Raises:
            AdapterError: the codes of `open_adapter` and `Adapter.expert`; ADAPTER_CHANGED, content or directory are
                not what they should be.
            WeaveError: LOAD_CANCELLED; LOAD_PROCESS_LOST, twice in a row.
        """
        real = resolve_adapter_path(path, self._allowed_roots)
        self._check_state(real, identity)

        def check() -> None:
            if cancelled():
                raise load_cancelled(name)

        layers, found = twice_if_lost(lambda: self._read(path, check))
        if digest and found != digest:
            raise _changed(path, f"content {digest[:16]}", found[:16])
        self._check_state(real, identity)
        return PackedAdapter(name, found, layers)

    def _read(self, path: str, check: Callable[[], None]) -> tuple[dict[int, PackedLayer], str]:
        """Layers by index, and the digest of the whole."""
        layers = {}
        with self._source.open(path, check) as reads:
            following = iter(reads)
            for index, experts in reads.experts.items():
                tensors, digests = zip(*islice(following, len(experts)), strict=True)
                layers[index] = self._pack(index, dict(zip(experts, tensors, strict=True)), digests)
                reads.give_back(tensors)
            return layers, reads.digest

    def _pack(self, index: int, experts: Mapping[int, ExpertTensors], digests: tuple[str, ...]) -> PackedLayer:
        port = self._ports[index]
        held = self._placement.held(experts, port.num_experts)
        weights = port.pack([experts[expert] for expert in held]) if held else {}
        return PackedLayer(tuple(experts), weights, digests, held)

    def _check_state(self, path: Path, identity: Identity | None) -> None:
        if identity is not None and directory_identity(path) != identity:
            raise _changed(str(path), "the directory as it was when it was validated", "another state of it")


def load_cancelled(name: str) -> WeaveError:
    """The error of whoever waited for a load that will not be finished."""
    return WeaveError(
        "LOAD_CANCELLED",
        f"adapter {name!r}",
        expected="the adapter to be wanted until it is loaded",
        got="it was taken out of service, or the engine stops",
        remedy="load it again",
    )


def _changed(path: str, expected: str, got: str) -> AdapterError:
    return AdapterError(
        "ADAPTER_CHANGED",
        path,
        expected=expected,
        got=got,
        remedy="do not write into an adapter's directory while it is loaded; load it again",
    )
