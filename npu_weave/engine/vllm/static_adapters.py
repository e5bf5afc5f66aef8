"""What data parallelism asks of adapters: all are loaded before the first request, and stay as they are."""

from __future__ import annotations

from collections.abc import Collection

from npu_weave.errors import CapacityError, UnsupportedError


class StaticAdapters:
    """The rule for one of several engine cores whose MoE layers work together.

    Every core has a scheduler and loads of its own, and a token's rows are looked up on one core and read on another.
    So all cores must have the same adapters in the same rows in every step: each gets its slot when it is loaded, in
    the order of loads, which are the same on all cores, and nothing changes from the first step on.

    Args:
        slots: adapters on the device at once.

    Attributes:
        serving: whether the first step, with requests or without, has been asked for.
        compared: whether the workers are known to have compared what they hold with other ranks.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.serving = False
        self.compared = False

    def check_load(self, name: str, public_id: int, known: Collection[int], *, again: bool) -> None:
        """Whether an adapter that is not in service may be loaded.

        Args:
            known: public ids in service or on their way.
            again: its files are to be looked at again.

        Raises:
            UnsupportedError: DATA_PARALLEL_STATIC, it is too late, or the id would stand for other content.
            CapacityError: SLOTS_EXHAUSTED, there are as many adapters as slots.
        """
        if self.serving:
            raise self.refusal(f"adapter {name!r}", "a load after the first request")
        if again or public_id in known:
            raise self.refusal(f"adapter {name!r}", f"a load over what id {public_id} stands for")
        if len(known) >= self._slots:
            raise CapacityError(
                "SLOTS_EXHAUSTED",
                f"adapter {name!r}",
                expected=f"at most {self._slots} adapters with data parallelism, as none is ever swapped",
                got=f"{len(known)} before it",
                remedy="raise --max-loras",
            )

    def refusal(self, thing: str, got: str) -> UnsupportedError:
        """The error for anything that would make cores differ."""
        return UnsupportedError(
            "DATA_PARALLEL_STATIC",
            thing,
            expected="adapters that are loaded before the first request and stay, with data parallelism",
            got=got,
            remedy="name every adapter at start: npu-weave serve --adapter NAME=PATH, or add_lora on every rank",
        )
