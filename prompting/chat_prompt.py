"""A rendered prompt back into chat messages: the inverse of `chat_template.render_messages`.

The text is cut at the openings and joints of the template's grammar into candidate messages, and
the candidate that renders to exactly this text is the answer. Where none does (a prompt written by
hand, or with thinking that the template would drop), headers alone separate the turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import InvalidInput, WorkerError
from prompting.chat_template import (
    ROLES,
    Message,
    apply_template,
    render_messages,
    strip_bos,
)
from prompting.prompts import tokenize, unsteerable_positions
from prompting.template_grammar import DATE, ByRole, Grammar, learn
from prompting.template_process import TemplateTooCostly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No date is longer; a bound keeps matching linear.
_ANY_DATE = r"([^\n]{0,64}?)"
# Only the first tokens decide which positions can be steered.
_OPENING_CHARACTERS = 1000


@dataclass(frozen=True)
class ParsedPrompt:
    """`messages` is None and `is_chat` false for text that isn't the template's.

    `prompt` is the text without a leading BOS, if tokenising it puts the BOS back;
    `unsteerable_positions` count its tokens as `prompts.tokenize` gives them (none when it can't be
    tokenised).
    """

    messages: list[Message] | None
    is_chat: bool
    prompt: str
    unsteerable_positions: list[int]


def parse(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    model_name: str = "",
    *,
    leading_token: bool = True,
) -> ParsedPrompt:
    """Read a prompt back into the messages that render to it, the last turn open or closed.

    Raises nothing but TemplateTooCostly, of a template that takes more time or memory than it may.

    The answering role is `assistant`, whatever the template calls it. Where several
    lists of messages render alike, text that looks like a joint counts as one, and what the
    template adds of its own (a system block, an empty think block) is left out. `leading_token` is
    that of `prompts.tokenize`.
    """
    text = strip_bos(prompt, tokenizer)
    messages = _read(text, tokenizer)
    positions = []
    try:
        ids = tokenize(
            text[:_OPENING_CHARACTERS], tokenizer, model_name, leading_token=leading_token
        )
        if leading_token:
            positions = unsteerable_positions(ids, model_name)
        elif ids[:1] != [tokenizer.bos_token_id]:
            text = prompt
    except WorkerError:
        pass
    return ParsedPrompt(messages, messages is not None, text, positions)


def _read(text: str, tokenizer: PreTrainedTokenizerBase) -> list[Message] | None:
    grammar = learn(tokenizer)
    openings = _longest_first(_patterns(grammar.openings))
    for opening, role in openings:
        if begins := re.match(opening, text):
            date = next(iter(begins.groups()), None)
            for messages in _finished(_cut(text, begins.end(), role, grammar), grammar):
                if _renders_to(text, messages, date, tokenizer):
                    return messages
    for opening, role in [*openings, *_longest_first(_patterns(grammar.headers))]:
        if begins := re.match(opening, text):
            *earlier, last = _cut(text, begins.end(), role, grammar, by_header=True)
            content = _without_closing(last["content"], grammar.closings[last["role"]])
            return [*earlier, {"role": last["role"], "content": content}]
    return None


def _patterns(known: ByRole, prefix: str = "") -> list[tuple[str, str]]:
    """Regular expressions for texts, each with its role. `DATE` in a text matches any date."""
    return [
        (prefix + re.escape(text).replace(DATE, _ANY_DATE), role)
        for role, texts in known.items()
        for text in texts
    ]


def _longest_first(patterns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(patterns, key=lambda pattern: (-len(pattern[0]), pattern))


def _boundary(
    role: str, after_first: bool, grammar: Grammar, *, by_header: bool
) -> re.Pattern[str]:
    """What ends a turn of this role: a joint, and `by_header` a header, with or without a closing.

    The name of the group that matches begins with the role of the next turn.
    """
    patterns = _patterns(grammar.joints[after_first, role])
    if by_header:
        closings = {text.rstrip() for text in grammar.closings[role]} - {""}
        closing = "|".join(re.escape(text) for text in sorted(closings, key=len, reverse=True))
        patterns += _patterns(grammar.headers, rf"(?:(?:{closing})\s{{0,8}})?" if closing else "")
    groups = [
        f"(?P<{following}_{i}>{pattern})"
        for i, (pattern, following) in enumerate(_longest_first(patterns))
    ]
    return re.compile("|".join(groups) or r"(?!)")


def _cut(
    text: str, start: int, role: str, grammar: Grammar, *, by_header: bool = False
) -> list[Message]:
    """Messages from `start` on. Each ends at the first joint, or `by_header` at the first header.

    The content of the last one still has its closing, if there is one.
    """
    boundaries = {
        (after_first, known): _boundary(known, after_first, grammar, by_header=by_header)
        for after_first in (True, False)
        for known in ROLES
    }
    turns: list[Message] = []
    while end := boundaries[not turns, role].search(text, start):
        turns.append({"role": role, "content": text[start : end.start()]})
        role, start = str(end.lastgroup).partition("_")[0], end.end()
    return [*turns, {"role": role, "content": text[start:]}]


def _finished(turns: list[Message], grammar: Grammar) -> Iterator[list[Message]]:
    """The messages with and without the last one's closing, and decorations removed or kept."""
    *earlier, last = turns
    role, content = last["role"], last["content"]
    if earlier and role == "assistant" and not content:
        # Before a generation prompt, the turn before it was the template's last.
        for before in _undecorated(earlier[-1], grammar):
            yield [*earlier[:-1], before, last]
    for closing in sorted(grammar.closings[role] - {""}, key=len, reverse=True):
        if content.endswith(closing):
            end = content.removesuffix(closing)
            for closed in _undecorated({"role": role, "content": end}, grammar):
                if role == "user":
                    # A template without a generation prompt: the closed turn asks for an answer.
                    yield [*earlier, closed, {"role": "assistant", "content": ""}]
                yield [*earlier, closed]
    for opened in _undecorated(last, grammar):
        yield [*earlier, opened]


def _undecorated(turn: Message, grammar: Grammar) -> Iterator[Message]:
    """The message without each decoration that its content begins with, then as it is."""
    role, content = turn["role"], turn["content"]
    for decoration in sorted(grammar.decorations[role], key=len, reverse=True):
        if content.startswith(decoration):
            yield {"role": role, "content": content.removeprefix(decoration)}
    yield turn


def _without_closing(content: str, closings: set[str]) -> str:
    for closing in sorted(closings - {""}, key=len, reverse=True):
        if content.endswith(closing):
            return content.removesuffix(closing)
        if closing.rstrip() and content.rstrip().endswith(closing.rstrip()):
            return content.rstrip().removesuffix(closing.rstrip())
    return content


def _renders_to(
    text: str, messages: list[Message], date: str | None, tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the messages render to the text, with the last turn open or closed."""
    try:
        opened = render_messages(messages, tokenizer, date)
        if strip_bos(opened, tokenizer) == text:
            return True
        closed = apply_template(messages, tokenizer, date=date)
    except TemplateTooCostly:
        raise
    except InvalidInput:
        return False
    return strip_bos(closed, tokenizer) == text
