"""Adapters with two contents each, and what plain vLLM answers with every content merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from npu_weave.adapters.merging import merge
from weave_bench.serving.models import Adapter, make_adapters
from weave_bench.serving.workload import Prompts
from weave_lab.demo.plain import answers_of
from weave_lab.demo.report import Answers
from weave_lab.demo.servers import BASE
from weave_lab.demo.traffic import Reply

NOISE = 0.5
"""How far copies are from their originals: far enough that they answer otherwise."""
PROMPT_TOKENS = 300
"""Two blocks of the prefix cache and more, so that a prompt asked again meets what is cached of it."""
PROMPTS = 6
"""A domain: enough to be answered together (vLLM's CPU kernel rounds otherwise for up to four tokens a step)."""


@dataclass(frozen=True)
class Name:
    """A name of an adapter.

    Attributes:
        contents: what it may stand for, by turns.
        prompts: what is asked of it.
    """

    name: str
    contents: Sequence[Adapter]
    prompts: Sequence[str]


@dataclass(frozen=True)
class Truth:
    """What each content answers, by its name and the prompt: alternatives that differ in rounding."""

    answers: Mapping[str, Mapping[str, Sequence[Reply]]]

    def tells_apart(self, prompt: str, contents: Sequence[str]) -> bool:
        """Whether all answers of these contents to a prompt differ."""
        tokens = [{reply.tokens for reply in self.answers[content][prompt]} for content in contents]
        return sum(map(len, tokens)) == len(set().union(*tokens))


def make_names(models: Path, count: int, scratch: Path) -> list[Name]:
    """`count` names with two contents each, of the same domain."""
    contents = make_adapters(models, 2 * count, scratch, noise=NOISE)
    texts = Prompts()
    names = []
    for first, second in zip(contents[:count], contents[count:], strict=True):
        prompts = [texts.text(first.domain, PROMPT_TOKENS, pick) for pick in range(PROMPTS)]
        names.append(Name(first.name, (first, second), prompts))
    return names


def find_truth(models: Path, names: Sequence[Name], scratch: Path) -> Truth:
    """Merge every content into a checkpoint and ask plain vLLM. Takes seconds a content."""
    base, merged = models / "base", {BASE: models / "base"}
    prompts: dict[str, Sequence[str]] = {BASE: sorted({prompt for name in names for prompt in name.prompts})}
    for name in tqdm(names, desc="merge"):
        for content in name.contents:
            merged[content.name] = scratch / "merged" / content.name
            prompts[content.name] = name.prompts
            merge(base, content.path, merged[content.name])
    found = answers_of(merged, prompts, scratch)
    return Truth({content: _by_prompt(prompts[content], answers) for content, answers in found.items()})


def _by_prompt(prompts: Sequence[str], answers: Answers) -> dict[str, Sequence[Reply]]:
    pairs = zip(prompts, zip(answers.together, answers.alone, strict=True), strict=True)
    return {prompt: list({reply.tokens: reply for reply in replies}.values()) for prompt, replies in pairs}
