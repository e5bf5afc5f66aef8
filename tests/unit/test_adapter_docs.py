"""docs/adapter-format.md: its list of codes is complete, its example of a config is a config."""

from __future__ import annotations

import json
import re
from pathlib import Path

from npu_weave.adapters.expert_config import ExpertConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/adapter-format.md").read_text()


def test_the_codes_are_those_that_the_room_raises() -> None:
    source = "".join(path.read_text() for path in (ROOT / "npu_weave/adapters").glob("*.py"))
    raised = set(re.findall(r'Error\(\s*"([A-Z]+(?:_[A-Z]+)+)"', source))
    listed = re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", TEXT[TEXT.index("## Codes") : TEXT.index("## In Python")])
    assert len(raised) > 40
    assert sorted(listed) == sorted(raised)


def test_the_example_is_valid() -> None:
    example = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    config = ExpertConfig.model_validate(json.loads(example[1]))
    assert config.expert_sets() == {1: (0, 3), 2: (4,)}
