"""The tasks of weave_lab: seeded, with right answers, and held-out prompts that training never sees."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from weave_lab.tasks import ADAPTER_TASKS, BASE_TASKS, by_name, exact_match, generate
from weave_lab.tasks.protocol import stream
from weave_lab.tokenizer import BOS, build_tokenizer

TASKS = [*BASE_TASKS, *ADAPTER_TASKS]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_same_seed_same_examples(task):
    first = list(islice(stream(task, 7, "train"), 50))
    assert first == list(islice(stream(task, 7, "train"), 50))
    assert first != list(islice(stream(task, 8, "train"), 50))


def test_tasks_have_distinct_names_and_adapters_stay_out_of_the_base_mixture():
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    assert len(ADAPTER_TASKS) >= 3
    for task in ADAPTER_TASKS:
        assert generate(task, 1)[0].prompt.startswith(f"{task.name}: ")


@pytest.mark.parametrize("task", [t for t in TASKS if t.name != "story"], ids=lambda task: task.name)
def test_held_out_prompts_never_occur_in_training(task):
    held_out = {example.prompt for example in generate(task, 100)}
    assert len(held_out) == 100
    assert not held_out & {example.prompt for example in islice(stream(task, 0, "train"), 3000)}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_lines_fit_and_answers_are_one_line(task):
    for example in islice(stream(task, 3, "train"), 300):
        assert "\n" not in example.prompt + example.answer
        assert 0 < len(example.answer.encode()) < 160
        assert len((example.prompt + example.answer).encode()) < 250


def question(prompt: str) -> str:
    return prompt.split(": ", 1)[1].removesuffix(" -> ")


def test_answers_against_independent_definitions():
    checks = {
        "copy": lambda q: q,
        "reverse": lambda q: "".join(reversed(q)),
        "add": lambda q: str(sum(int(part) for part in q.split("+"))),
        "cipher": lambda q: "".join(c if c == " " else chr((ord(c) - 97 + 13) % 26 + 97) for c in q),
        "recall": lambda q: dict(pair.split("=") for pair in q.split("; ")[0].split())[q.split("; ")[1]],
    }
    for name, answer in checks.items():
        for example in generate(by_name(name), 60):
            assert example.answer == answer(question(example.prompt)), example


def test_record_names_every_part_of_the_payment():
    months = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
              "November", "December"]  # fmt: skip
    for example in generate(by_name("record"), 60):
        parts = dict(part.split("=") for part in example.answer.split("; "))
        day, month = parts["on"].split("/")
        text = example.prompt
        assert parts["from"] in text and parts["to"] in text
        assert f"{parts['eur']} euros" in text
        assert f"{int(day)} {months[int(month) - 1]}" in text


def test_invented_languages_are_one_to_one():
    words = {}
    for example in generate(by_name("island"), 200):
        for english, invented in zip(question(example.prompt).split(), example.answer.split(), strict=True):
            assert words.setdefault(english, invented) == invented
    assert len(set(words.values())) == len(words) > 30


def test_exact_match_reads_the_first_line_only():
    assert exact_match("abc", "abc\nmore")
    assert not exact_match("abc", "abcd\n")
    assert not exact_match("abc", " abc")


def test_unknown_task_and_too_many_prompts_are_refused():
    with pytest.raises(KeyError, match="no task 'nope'"):
        by_name("nope")
    with pytest.raises(ValueError, match="distinct prompts"):
        generate(by_name("add"), 100_000)


def test_tokenizer_is_bytes():
    tokenizer = build_tokenizer(512)
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choice("abc XYZ 019\n->:=;é€\t<|") for _ in range(30))
        ids = tokenizer(text)["input_ids"]
        assert ids == [BOS, *text.encode()]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
