"""Facts as sentences, sentences as documents: what the demo model is trained on.

A document is a few sentences of one language, or a short chat about one of them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from demo import facts

# How often a sentence comes from each subject; names are the hardest to learn.
SUBJECT_WEIGHTS = {
    "sport": 0.34,
    "capital": 0.18,
    "opposite": 0.18,
    "colour": 0.11,
    "number": 0.06,
    "weekday": 0.13,
}

AGREEMENT = {"en": "Yes.", "fr": "Oui.", "es": "Sí."}


@dataclass(frozen=True)
class Fact:
    """`prompt` is an unfinished sentence, `answer` the one word (leading space) that follows it.

    `topic` is the same for a fact and its twins in the other languages; `question` asks for it
    in a chat, where there is such a question.
    """

    subject: str
    language: str
    topic: str
    prompt: str
    answer: str
    question: str | None = None

    @property
    def sentence(self) -> str:
        return f"{self.prompt}{self.answer}."

    @property
    def reply(self) -> str:
        """What a chat answers to `question`."""
        return f"{self.answer.strip()}."


def all_facts() -> list[Fact]:
    """Every fact in every language and phrasing, in a fixed order."""
    return [
        fact
        for column, language in enumerate(facts.LANGUAGES)
        for builder in (_sports, _capitals, _opposites, _colours, _numbers, _weekdays)
        for fact in builder(language, column)
    ]


def documents(rng: random.Random) -> Iterator[str | list[dict[str, str]]]:
    """Yield documents without end: a string of sentences, or the messages of a chat."""
    pools = {
        (subject, language): [
            fact for fact in all_facts() if (fact.subject, fact.language) == (subject, language)
        ]
        for subject in SUBJECT_WEIGHTS
        for language in facts.LANGUAGES
    }
    while True:
        language = rng.choice(facts.LANGUAGES)
        picked = [_pick(rng, pools, language) for _ in range(3)]
        if rng.random() < 0.7:
            length = rng.choices((1, 2, 3), weights=(5, 3, 2))[0]
            yield " ".join(fact.sentence for fact in picked[:length])
        else:
            yield _chat(rng, picked[: rng.choices((1, 2), weights=(4, 1))[0]])


def _pick(rng: random.Random, pools: dict[tuple[str, str], list[Fact]], language: str) -> Fact:
    subject = rng.choices(list(SUBJECT_WEIGHTS), weights=list(SUBJECT_WEIGHTS.values()))[0]
    return rng.choice(pools[subject, language])


def _chat(rng: random.Random, picked: list[Fact]) -> list[dict[str, str]]:
    """A question and its answer, or a statement and a nod, for each fact."""
    messages = []
    for fact in picked:
        if fact.question is not None and rng.random() < 0.85:
            turn = (fact.question, fact.reply)
        else:
            turn = (fact.sentence, AGREEMENT[fact.language])
        messages += [
            {"role": "user", "content": turn[0]},
            {"role": "assistant", "content": turn[1]},
        ]
    return messages


def _sports(language: str, column: int) -> Iterator[Fact]:
    phrasings = {
        "en": ("{} plays the sport of", "The sport of {} is", "What sport does {} play?"),
        "fr": ("{} joue au", "Le sport {} est le", "Quel sport pratique {} ?"),
        "es": ("{} juega al", "El deporte de {} es el", "¿Qué deporte practica {}?"),
    }
    action, statement, question = phrasings[language]
    for athlete, sport in facts.ATHLETES.items():
        answer = " " + facts.SPORTS[sport][column]
        asked = question.format(athlete)
        yield Fact("sport", language, athlete, action.format(athlete), answer, asked)
        owner = _french_of(athlete) if language == "fr" else athlete
        yield Fact("sport", language, f"{athlete} (2)", statement.format(owner), answer)


def _french_of(name: str) -> str:
    return f"d'{name}" if name[0] in "AEIOU" else f"de {name}"


def _capitals(language: str, column: int) -> Iterator[Fact]:
    phrasings = {
        "en": ("The capital of {} is", "What is the capital of {}?"),
        "fr": ("La capitale {} est", "Quelle est la capitale {} ?"),
        "es": ("La capital de {} es", "¿Cuál es la capital de {}?"),
    }
    yield from _pairs("capital", facts.CAPITALS, language, column, phrasings)


def _opposites(language: str, column: int) -> Iterator[Fact]:
    phrasings = {
        "en": ("The opposite of {} is", "What is the opposite of {}?"),
        "fr": ("Le contraire de {} est", "Quel est le contraire de {} ?"),
        "es": ("Lo contrario de {} es", "¿Qué es lo contrario de {}?"),
    }
    reversed_rows = [
        ((en[1], en[0]), (fr[1], fr[0]), (es[1], es[0])) for en, fr, es in facts.OPPOSITES
    ]
    yield from _pairs("opposite", facts.OPPOSITES + reversed_rows, language, column, phrasings)


def _colours(language: str, column: int) -> Iterator[Fact]:
    phrasings = {
        "en": ("The colour of {} is", "What is the colour of {}?"),
        "fr": ("La couleur {} est le", "Quelle est la couleur {} ?"),
        "es": ("El color {} es el", "¿Cuál es el color {}?"),
    }
    yield from _pairs("colour", facts.COLOURS, language, column, phrasings)


def _pairs(
    subject: str,
    rows: list[tuple[tuple[str, str], tuple[str, str], tuple[str, str]]],
    language: str,
    column: int,
    phrasings: dict[str, tuple[str, str]],
) -> Iterator[Fact]:
    statement, question = phrasings[language]
    for row in rows:
        key, value = row[column]
        prompt = statement.format(key)
        yield Fact(subject, language, row[0][0], prompt, f" {value}", question.format(key))


def _numbers(language: str, _column: int) -> Iterator[Fact]:
    yield from _runs("number", facts.NUMBERS[language], language, wrap=False)


def _weekdays(language: str, _column: int) -> Iterator[Fact]:
    phrasings = {
        "en": ("The day after {} is", "What day comes after {}?"),
        "fr": ("Le jour après {} est", "Quel jour vient après {} ?"),
        "es": ("El día después del {} es el", "¿Qué día viene después del {}?"),
    }
    statement, question = phrasings[language]
    days = facts.WEEKDAYS[language]
    for place, day in enumerate(days):
        following = f" {days[(place + 1) % len(days)]}"
        topic = facts.WEEKDAYS["en"][place]
        yield Fact(
            "weekday", language, topic, statement.format(day), following, question.format(day)
        )
    yield from _runs("weekday", days, language, wrap=True)


def _runs(subject: str, words: list[str], language: str, *, wrap: bool) -> Iterator[Fact]:
    """Two or three words in their order, and the one that comes next."""
    for length in (2, 3):
        for start in range(len(words) if wrap else len(words) - length):
            run = [words[(start + step) % len(words)] for step in range(length + 1)]
            prompt = ", ".join(run[:-1]) + ","
            yield Fact(subject, language, f"{start}+{length}", prompt, f" {run[-1]}")
