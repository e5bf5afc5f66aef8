"""The tasks in the base model's training mixture."""

from __future__ import annotations

import random
from dataclasses import dataclass

from weave_lab.tasks.protocol import Example, LineTask, Task
from weave_lab.tasks.wordbank import (
    CITIES,
    DIGIT_WORDS,
    FIRST_NAMES,
    LAST_NAMES,
    MONTHS,
    clause,
    invented_lexicon,
    random_word,
)

_NORDIC = invented_lexicon("nordic", "hjkrsv", {"determiner": "en", "adjective": "ig", "noun": "ur", "verb": "ar"})

_TOPICS = {
    "sport": ("the striker scored a late goal", "the team won the final match", "she ran the race in record time"),
    "food": ("the soup needs more salt", "he baked fresh bread at dawn", "they cooked rice with beans"),
    "weather": ("heavy rain fell all night", "the wind turned cold and strong", "snow will cover the hills"),
    "music": ("the band played a slow song", "her violin filled the hall", "the choir sang two old hymns"),
}


@dataclass(frozen=True)
class Payment:
    """A payment told in one sentence, of which tasks ask for parts."""

    payer: str
    payee: str
    euros: int
    day: int
    month: int

    @staticmethod
    def draw(rng: random.Random) -> Payment:
        payer, payee = (f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}" for _ in range(2))
        return Payment(payer, payee, rng.randint(2, 99), rng.randint(1, 28), rng.randint(1, 12))

    def sentence(self, rng: random.Random) -> str:
        """One of three ways to tell it."""
        date = f"{self.day} {MONTHS[self.month - 1]}"
        return rng.choice(
            (
                f"On {date} {self.payer} paid {self.euros} euros to {self.payee}.",
                f"{self.payer} sent {self.payee} {self.euros} euros on {date}.",
                f"{self.payee} got {self.euros} euros from {self.payer} on {date}.",
            )
        )


def _copy(rng: random.Random) -> tuple[str, str]:
    text = " ".join(random_word(rng, 3, 9) for _ in range(rng.randint(1, 2)))
    return text, text


def _upper(rng: random.Random) -> tuple[str, str]:
    text = random_word(rng, 3, 10)
    return text, text.upper()


def _reverse(rng: random.Random) -> tuple[str, str]:
    text = random_word(rng, 3, 7)
    return text, text[::-1]


def _sort(rng: random.Random) -> tuple[str, str]:
    text = random_word(rng, 3, 6)
    return text, "".join(sorted(text))


def _add(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(0, 29), rng.randint(0, 29)
    return f"{left}+{right}", str(left + right)


def _recall(rng: random.Random) -> tuple[str, str]:
    keys = list({random_word(rng, 2, 3): None for _ in range(rng.randint(2, 4))})
    values = [str(rng.randint(10, 99)) for _ in keys]
    chosen = rng.randrange(len(keys))
    pairs = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    return f"{pairs}; {keys[chosen]}", values[chosen]


def _digits(rng: random.Random) -> tuple[str, str]:
    number = [rng.randrange(10) for _ in range(rng.randint(2, 5))]
    return " ".join(DIGIT_WORDS[digit] for digit in number), "".join(map(str, number))


def _payer(rng: random.Random) -> tuple[str, str]:
    payment = Payment.draw(rng)
    return payment.sentence(rng), payment.payer


def _payee(rng: random.Random) -> tuple[str, str]:
    payment = Payment.draw(rng)
    return payment.sentence(rng), payment.payee


def _date(rng: random.Random) -> tuple[str, str]:
    payment = Payment.draw(rng)
    return payment.sentence(rng), f"{payment.day}-{payment.month}"


def _amount(rng: random.Random) -> tuple[str, str]:
    payment = Payment.draw(rng)
    return payment.sentence(rng), str(payment.euros)


def _topic(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(tuple(_TOPICS))
    where = rng.choice(("", f" in {rng.choice(CITIES)}"))
    opening = rng.choice(("", "today ", "yes, ", f"{rng.choice(FIRST_NAMES)} says "))
    return f"{opening}{rng.choice(_TOPICS[topic])}{where}", topic


def _nordic(rng: random.Random) -> tuple[str, str]:
    words = clause(rng)
    return " ".join(words), " ".join(_NORDIC[word] for word in words)


@dataclass(frozen=True)
class Story:
    """Free text of a few short sentences; it has no prompt, so the model learns to write it from nothing."""

    name: str = "story"

    def example(self, rng: random.Random) -> Example:
        name, city = rng.choice(FIRST_NAMES), rng.choice(CITIES)
        first = " ".join(clause(rng)).capitalize()
        return Example("", f"{first}. {name} of {city} knows that {' '.join(clause(rng))}. {name} is in {city}.")


BASE_TASKS: tuple[Task, ...] = (
    LineTask("copy", _copy),
    LineTask("upper", _upper),
    LineTask("reverse", _reverse),
    LineTask("sort", _sort),
    LineTask("add", _add),
    LineTask("recall", _recall),
    LineTask("digits", _digits),
    LineTask("payer", _payer),
    LineTask("payee", _payee),
    LineTask("date", _date),
    LineTask("amount", _amount),
    LineTask("topic", _topic),
    LineTask("nordic", _nordic),
    Story(),
)

MIXTURE: tuple[Task, ...] = (*BASE_TASKS, *(task for task in BASE_TASKS if task.name in ("add", "recall")))
"""What pretraining draws from: the two slowest to learn count twice."""
