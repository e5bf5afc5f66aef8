"""How many rows adapters can need together, when experts with equal content share one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Family:
    """Adapters connected by shared content: revisions and replicas of one another, usually."""

    contents: set[str] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)


def most_rows(adapters: Iterable[Collection[str]], chosen: int) -> int:
    """Bound on the distinct contents of any `chosen` of `adapters` (a layer's contents of each, without repetition).

    The exact worst case is a maximum coverage problem. The bound takes the adapters apart into families that share
    nothing with each other: `k` of a family need no more than the `k` largest together, nor more than the whole
    family's distinct contents. It is exact when no content is shared, and when every family that shares is counted
    whole, as an adapter and its next revision in two slots are: what differs between them is all that the second
    costs. It depends only on which contents are equal, not on order, so ranks with equal contents decide alike.
    """
    gains: list[int] = []
    for family in _families(adapters):
        room = len(family.contents)
        for size in sorted(family.sizes, reverse=True):
            gains.append(min(size, room))
            room -= gains[-1]
    # within a family gains only fall, so the largest of all are the worst choice
    return sum(sorted(gains, reverse=True)[:chosen])


def _families(adapters: Iterable[Collection[str]]) -> set[_Family]:
    families: set[_Family] = set()
    family_of: dict[str, _Family] = {}
    for contents in adapters:
        family = _Family(set(contents), [len(contents)])
        for other in {family_of[content] for content in contents if content in family_of}:
            family.contents |= other.contents
            family.sizes += other.sizes
            families.remove(other)
        families.add(family)
        family_of.update(dict.fromkeys(family.contents, family))
    return families
