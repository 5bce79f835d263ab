"""A hint on a prompt that the model can't continue: what to try instead."""

from collections.abc import Iterator, Sequence

from remote.terminal.text import BYTE_TOKENS, quoted, text_of

DEMO = "demo"

# Below it the hint is given. It is low, because models of real size know facts that they give no
# more than half of the probability.
UNSURE = 0.2
# The demo model gives the answers of all 468 facts of its corpus at least 0.95, and in most other
# sentences its likeliest token has less than this. Both are measured in
# tests/remote/terminal/test_prompt_hint.py.
DEMO_UNSURE = 0.9
DEMO_PROMPTS = (
    "Michael Jordan joue au",
    "The capital of France is",
    "Lo contrario de grande es",
)

_MOST_WORDS = 3


def hint(likeliest: float | None, tokens: Sequence[str], model: str | None) -> str | None:
    """A sentence for a terminal, or None where the model seems to know how the prompt goes on.

    Args:
        likeliest: the probability of the likeliest next token; None where that isn't known.
        tokens: of the prompt.
        model: its name; of the demo model more is known than of others.
    """
    if model == DEMO:
        return _demo_hint(likeliest, tokens)
    if likeliest is None or likeliest >= UNSURE:
        return None
    return (
        f"the model is unsure: the likeliest next token has {_percent(likeliest)}. Graphs say "
        "most about prompts with one clear continuation, such as "
        f"{quoted('The capital of France is')}."
    )


def _demo_hint(likeliest: float | None, tokens: Sequence[str]) -> str | None:
    """The demo model is small enough to be sure of nonsense: its vocabulary tells more."""
    unknown = list(dict.fromkeys(split_words(tokens)))
    if unknown:
        words = ", ".join(quoted(_text(word)) for word in unknown[:_MOST_WORDS])
        if len(unknown) > _MOST_WORDS:
            words += f" and {len(unknown) - _MOST_WORDS} more"
        why = f"the demo model never saw {words}, so it guesses"
    elif likeliest is not None and likeliest < DEMO_UNSURE:
        why = f"the demo model is unsure: the likeliest next token has {_percent(likeliest)}"
    else:
        return None
    known = ", ".join(map(quoted, DEMO_PROMPTS))
    return (
        f"{why}. It knows sports of athletes, capitals, opposites, colours, numbers and weekdays "
        f"in English, French and Spanish. Try {known}."
    )


def split_words(tokens: Sequence[str]) -> Iterator[str]:
    """The words that are more than one token, or a token of bytes. For the demo model these are
    the words that its corpus doesn't have."""
    word: list[str] = []
    for token in [*tokens, " "]:
        goes_on = bool(word) and _ends_in_word(word[-1]) and _begins_in_word(token)
        if not goes_on:
            if len(word) > 1 or any(map(BYTE_TOKENS.fullmatch, word)):
                yield "".join(word).strip()
            word = []
        word.append(token)


def _text(word: str) -> str:
    """A word with its tokens of bytes as the characters that they are, if they are whole ones."""
    pieces = BYTE_TOKENS.sub(lambda found: text_of([found[0]]), word)
    return word if "\ufffd" in pieces else pieces


def _ends_in_word(token: str) -> bool:
    return token[-1:].isalnum() or BYTE_TOKENS.fullmatch(token) is not None


def _begins_in_word(token: str) -> bool:
    return token[:1].isalnum() or BYTE_TOKENS.fullmatch(token) is not None


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"{share:.0%}"
