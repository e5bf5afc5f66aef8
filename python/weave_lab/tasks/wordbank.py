"""Words, names and invented words that the tasks draw from. Fixed: they do not depend on the training seed."""

from __future__ import annotations

import random

FIRST_NAMES = ("Anna", "Omar", "Mei", "Jonas", "Lucia", "Tariq", "Nora", "Felix", "Ines", "Paul", "Rosa", "Viktor")
LAST_NAMES = ("Bell", "Reed", "Chen", "Moreau", "Stone", "Keller", "Diaz", "Novak", "Frost", "Lind", "Okoro", "Wood")
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Delhi", "Porto", "Kyoto", "Boston", "Quito", "Perth")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DETERMINERS = ("the", "a", "this", "my")
ADJECTIVES = ("red", "old", "small", "quick", "quiet", "green", "happy", "cold", "young", "bright")
NOUNS = ("dog", "cat", "bird", "house", "river", "child", "tree", "horse", "farmer", "stone", "ship", "king",
         "garden", "friend", "road", "moon")  # fmt: skip
VERBS = ("sees", "likes", "finds", "hears", "follows", "carries", "paints", "leaves", "wants", "hides")

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def random_word(rng: random.Random, low: int, high: int) -> str:
    """A string of `low` to `high` lower-case letters, half of the time with the look of a word."""
    length = rng.randint(low, high)
    if rng.random() < 0.5:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
    first = rng.randrange(2)
    return "".join(rng.choice(_VOWELS if (i + first) % 2 else _CONSONANTS) for i in range(length))


def clause(rng: random.Random) -> list[str]:
    """The words of a short clause such as ``the red dog sees a cat``."""

    def noun_phrase() -> list[str]:
        adjective = [rng.choice(ADJECTIVES)] if rng.random() < 0.5 else []
        return [rng.choice(DETERMINERS), *adjective, rng.choice(NOUNS)]

    return [*noun_phrase(), rng.choice(VERBS), *noun_phrase()]


def invented_lexicon(name: str, onsets: str, endings: dict[str, str]) -> dict[str, str]:
    """A word-for-word lexicon of an invented language.

    Args:
        name: seeds the choice of words.
        onsets: consonants a syllable may start with; they give the language its sound.
        endings: what a word of each class (``determiner``, ``adjective``, ``noun``, ``verb``) ends in.

    Returns:
        English word -> invented word, all distinct.
    """
    rng = random.Random(name)
    classes = {"determiner": (DETERMINERS, 0), "adjective": (ADJECTIVES, 1), "noun": (NOUNS, 1), "verb": (VERBS, 1)}
    lexicon: dict[str, str] = {}
    for kind, (words, syllables) in classes.items():
        for word in words:
            while True:
                stem = "".join(rng.choice(onsets) + rng.choice(_VOWELS) for _ in range(syllables))
                candidate = stem + rng.choice(onsets) + endings[kind]
                if candidate not in lexicon.values():
                    lexicon[word] = candidate
                    break
    return lexicon
