"""README.md and README.zh.md name the same commands and lead to the same places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))


def commands(path: Path) -> list[str]:
    """Lines of its shell blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line).rstrip() for block in blocks for line in block.splitlines()]


def links(path: Path) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", path.read_text())) - {README.name, CHINESE.name}


def headings(path: Path) -> int:
    return len(re.findall(r"^## ", path.read_text(), flags=re.MULTILINE))


def test_both_name_the_same_commands() -> None:
    assert len(commands(README)) > 10
    assert commands(CHINESE) == commands(README)


def test_both_lead_to_the_same_places() -> None:
    assert links(CHINESE) == links(README)


@pytest.mark.parametrize("path", [README, CHINESE])
def test_links_lead_somewhere(path: Path) -> None:
    assert all((ROOT / link).exists() for link in links(path) if "://" not in link)


def test_sections_match() -> None:
    """All but the tree of files, which is the same in any language."""
    assert headings(CHINESE) == headings(README) - 1
