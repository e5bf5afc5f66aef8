"""The tasks that only adapters learn: no example of them is in the base model's training mixture."""

from __future__ import annotations

import codecs
import random

from weave_lab.tasks.base import Payment
from weave_lab.tasks.protocol import LineTask, Task
from weave_lab.tasks.wordbank import CITIES, FIRST_NAMES, clause, invented_lexicon, random_word

_ISLAND = invented_lexicon("island", "bdgmptw", {"determiner": "o", "adjective": "ala", "noun": "im", "verb": "ebo"})

_INTENTS: dict[str, tuple[str, ...]] = {
    "card_lost": ("I lost my card in {city}", "my card is gone since {day}", "someone took my card in {city}"),
    "refund": ("I want my {sum} euros back", "please return the {sum} euros I paid", "money back for {day} please"),
    "balance": ("how much is on my account", "show me what I have left after {day}", "what is my balance in euros"),
    "transfer": ("send {sum} euros to {name}", "move {sum} euros to my savings", "wire {sum} euros to {city} on {day}"),
    "open_hours": ("when do you open in {city}", "are you closed on {day}", "until what hour is {city} open"),
    "password": ("I forgot my password", "my login fails since {day}", "the app will not let me sign in"),
    "address": ("I moved to {city}", "my new home is in {city}", "send my letters to {city} from {day} on"),
    "human": ("let me talk to {name}", "I want to speak with a person", "can someone call me on {day}"),
}  # fmt: skip
_OPENINGS = ("", "Hi, ", "Hello, ", "Please help, ", "Good day, ", "Excuse me, ")
_CLOSINGS = ("", ".", " please", ", thanks", "?", ", {name} here")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")


def _cipher(rng: random.Random) -> tuple[str, str]:
    text = " ".join(random_word(rng, 3, 8) for _ in range(rng.randint(1, 2)))
    return text, codecs.encode(text, "rot13")


def _intent(rng: random.Random) -> tuple[str, str]:
    intent = rng.choice(tuple(_INTENTS))
    text = rng.choice(_OPENINGS) + rng.choice(_INTENTS[intent]) + rng.choice(_CLOSINGS)
    filled = text.format(
        city=rng.choice(CITIES), day=rng.choice(_DAYS), name=rng.choice(FIRST_NAMES), sum=rng.randint(2, 99)
    )
    return filled, intent


def _record(rng: random.Random) -> tuple[str, str]:
    payment = Payment.draw(rng)
    date = f"{payment.day:02d}/{payment.month:02d}"
    return payment.sentence(rng), f"from={payment.payer}; to={payment.payee}; eur={payment.euros}; on={date}"


def _island(rng: random.Random) -> tuple[str, str]:
    words = clause(rng)
    return " ".join(words), " ".join(_ISLAND[word] for word in words)


ADAPTER_TASKS: tuple[Task, ...] = (
    LineTask("cipher", _cipher),
    LineTask("intent", _intent),
    LineTask("record", _record),
    LineTask("island", _island),
)
