"""A rendered prompt back into chat messages: the inverse of `prompts.render_messages`.

What a template writes around the contents is read off the template itself: it is rendered with
marked contents for every short run of roles, and cut at the marks. No model family is named here.

Between two contents stands a *joint* (the end of a turn and the header of the next), before the
first an *opening* (which may hold a system block of the template's own), after the last a
*closing*. Text is cut at openings and joints into candidate messages, and the candidate that
renders to exactly this text is the answer. Where none does (written by hand, thinking that the
template would drop), turns are told by their headers alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from errors import InvalidInput, WorkerError
from prompting.prompts import (
    ROLES,
    apply_template,
    render_messages,
    strip_bos,
    tokenize,
    unsteerable_positions,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# Every run of up to three roles, and longer ones for templates that want strict alternation.
_PROBES: list[tuple[str, ...]] = [
    *(roles for n in (3, 2, 1) for roles in product(ROLES, repeat=n)),
    ("user", "assistant") * 2,
    ("user", "assistant") * 2 + ("user",),
    ("system", *("user", "assistant") * 2),
]
_BY_CLAIM = ("user", "assistant", "system")
_CONTENT = "\ue002{}\ue003"
_DATE = "\ue004"
# No date is longer; a bound keeps matching linear.
_ANY_DATE = r"([^\n]{0,64}?)"
# Only the first tokens decide which positions can be steered.
_OPENING_CHARACTERS = 1000


@dataclass(frozen=True)
class ParsedPrompt:
    """`messages` is None and `is_chat` false for text that isn't the template's.

    `prompt` is the text without a leading BOS; `unsteerable_positions` count its tokens as
    `prompts.tokenize` gives them (none when it can't be tokenised).
    """

    messages: list[Message] | None
    is_chat: bool
    prompt: str
    unsteerable_positions: list[int]


@dataclass
class _Grammar:
    """What the template writes around contents, by role. A date in it stands as `_DATE`."""

    openings: dict[str, set[str]] = field(default_factory=partial(defaultdict, set))
    # By whether it follows the first turn, and the role before: the text and the role after.
    joints: dict[tuple[bool, str], set[tuple[str, str]]] = field(
        default_factory=partial(defaultdict, set)
    )
    closings: dict[str, set[str]] = field(default_factory=partial(defaultdict, set))
    # A joint without the closing that it begins with.
    headers: dict[str, set[str]] = field(default_factory=partial(defaultdict, set))
    # What precedes the content of a trailing turn and of no other.
    decorations: dict[str, set[str]] = field(default_factory=partial(defaultdict, set))


def parse(prompt: str, tokenizer: PreTrainedTokenizerBase, model_name: str = "") -> ParsedPrompt:
    """Read a prompt back into the messages that render to it, the last turn open or closed.

    Never raises. Roles are canonical: `assistant`, whatever the template calls it. Where several
    lists of messages render alike, text that is a joint is taken for one, and what the template
    adds of its own (a system block, an empty think block) is left out.
    """
    text = strip_bos(prompt, tokenizer)
    messages = _read(text, tokenizer)
    try:
        ids = tokenize(text[:_OPENING_CHARACTERS], tokenizer, model_name)
        positions = unsteerable_positions(ids, tokenizer, model_name)
    except WorkerError:
        positions = []
    return ParsedPrompt(messages, messages is not None, text, positions)


def _read(text: str, tokenizer: PreTrainedTokenizerBase) -> list[Message] | None:
    grammar = _learn(tokenizer)
    openings = _longest_first(grammar.openings)
    for opening, role in openings:
        if begins := re.match(_pattern(opening), text):
            turns = _cut(text, begins.end(), role, grammar)
            date = next(iter(begins.groups()), None)
            for messages in _finished(turns, grammar):
                if _renders_to(text, messages, date, tokenizer):
                    return messages
    for opening, role in [*openings, *_longest_first(grammar.headers)]:
        if begins := re.match(_pattern(opening), text):
            *earlier, last = _cut(text, begins.end(), role, grammar, by_header=True)
            content = _without_closing(last["content"], grammar.closings[last["role"]])
            return [*earlier, {"role": last["role"], "content": content}]
    return None


def _learn(tokenizer: PreTrainedTokenizerBase) -> _Grammar:
    """Render every run of roles that the template takes, and see what stands where."""
    grammar = _Grammar()
    rendered = {roles: _pieces(roles, tokenizer) for roles in _PROBES}
    taken = {roles: pieces for roles, pieces in rendered.items() if pieces}
    for roles, pieces in taken.items():
        grammar.closings[roles[-1]].add(pieces[-1])
        for i in range(len(roles) - 1):
            _learn_before(i, roles, pieces[i], grammar)
    for roles, pieces in taken.items():
        _learn_before_last(roles, pieces[-2], grammar)
    for (_, role), joints in grammar.joints.items():
        for joint, after in joints:
            for closing in grammar.closings[role]:
                if joint.startswith(closing) and joint != closing:
                    grammar.headers[after].add(joint.removeprefix(closing))
    _learn_generation_prompt(tokenizer, grammar)
    _drop_unmarked(grammar)
    return grammar


def _pieces(
    roles: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, *, generation: bool = False
) -> list[str] | None:
    """The n + 1 texts around n contents, or None where the template refuses or changes them."""
    marks = [_CONTENT.format(i) for i in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        rest = apply_template(
            messages,
            tokenizer,
            add_generation_prompt=generation,
            template_variables={"strftime_now": lambda _format: _DATE},
        )
    except InvalidInput:
        return None
    rest = strip_bos(rest, tokenizer)
    pieces = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            return None
        pieces.append(before)
    return [*pieces, rest]


def _learn_before(i: int, roles: tuple[str, ...], piece: str, grammar: _Grammar) -> None:
    if i == 0:
        grammar.openings[roles[0]].add(piece)
    else:
        grammar.joints[i == 1, roles[i - 1]].add((piece, roles[i]))


def _learn_before_last(roles: tuple[str, ...], piece: str, grammar: _Grammar) -> None:
    """A trailing turn's decoration: what stands before it and not before others of its role."""
    i, role = len(roles) - 1, roles[-1]
    if i == 0:
        plain = grammar.openings[role]
    else:
        plain = {text for text, after in grammar.joints[i == 1, roles[i - 1]] if after == role}
    if piece in plain:
        return
    beginnings = [text for text in plain if piece.startswith(text)]
    if beginnings:
        grammar.decorations[role].add(piece.removeprefix(max(beginnings, key=len)))
    else:
        _learn_before(i, roles, piece, grammar)


def _learn_generation_prompt(tokenizer: PreTrainedTokenizerBase, grammar: _Grammar) -> None:
    """A generation prompt may go on after the header (an open think block): a decoration too.

    Or stop before its end, for the model to write the rest (a channel): a joint of its own.
    """
    pieces = _pieces(("user",), tokenizer, generation=True)
    if pieces is None:
        return
    prompt = pieces[-1]
    for closing, header in product(grammar.closings["user"], list(grammar.headers["assistant"])):
        joint = closing + header
        if prompt.startswith(joint) and prompt != joint:
            grammar.decorations["assistant"].add(prompt.removeprefix(joint))
        elif joint.startswith(prompt) and len(closing) < len(prompt) < len(joint):
            for after_first in (True, False):
                grammar.joints[after_first, "user"].add((prompt, "assistant"))
            grammar.headers["assistant"].add(prompt.removeprefix(closing))


def _drop_unmarked(grammar: _Grammar) -> None:
    """Forget what can't tell a turn: blank text, and text that also stands before another role.

    The user's and the assistant's have it first: a template without a system role may put the
    system text into the first user turn, where it can't be told from the user's own.
    """
    for known in (grammar.openings, grammar.headers):
        taken: set[str] = set()
        for role in _BY_CLAIM:
            known[role] = {text for text in known[role] if text.strip()} - taken
            taken |= known[role]
    for key, joints in grammar.joints.items():
        claims = dict(sorted(joints, key=_claim, reverse=True))
        grammar.joints[key] = {(text, role) for text, role in claims.items() if text.strip()}


def _claim(joint: tuple[str, str]) -> int:
    return _BY_CLAIM.index(joint[1])


def _longest_first(known: dict[str, set[str]]) -> list[tuple[str, str]]:
    pairs = [(text, role) for role, texts in known.items() for text in texts]
    return sorted(pairs, key=lambda pair: (-len(pair[0]), pair))


def _pattern(text: str) -> str:
    return re.escape(text).replace(_DATE, _ANY_DATE)


@dataclass(frozen=True)
class _Boundary:
    """Where a turn may end; group `bN` of the pattern means that role N of `roles` follows."""

    pattern: re.Pattern[str]
    roles: list[str]


def _boundary(
    role: str, after_first: bool, grammar: _Grammar, *, by_header: bool
) -> _Boundary | None:
    joints = {
        (_pattern(joint), following) for joint, following in grammar.joints[after_first, role]
    }
    if by_header:
        closings = {text.rstrip() for text in grammar.closings[role]} - {""}
        closing = "|".join(re.escape(text) for text in sorted(closings, key=len, reverse=True))
        optional = rf"(?:(?:{closing})\s{{0,8}})?" if closing else ""
        for following, headers in grammar.headers.items():
            joints |= {(optional + _pattern(header), following) for header in headers}
    if not joints:
        return None
    ordered = sorted(joints, key=lambda joint: (-len(joint[0]), joint))
    groups = [f"(?P<b{i}>{pattern})" for i, (pattern, _) in enumerate(ordered)]
    return _Boundary(re.compile("|".join(groups)), [following for _, following in ordered])


def _cut(
    text: str, start: int, role: str, grammar: _Grammar, *, by_header: bool = False
) -> list[Message]:
    """Turns from `start` on: each ends at the first joint, or else at the first header.

    The last one's content still has its closing, if there is one.
    """
    boundaries = {
        (after_first, known): _boundary(known, after_first, grammar, by_header=by_header)
        for after_first in (True, False)
        for known in ROLES
    }
    turns: list[Message] = []
    while True:
        boundary = boundaries[not turns, role]
        end = boundary.pattern.search(text, start) if boundary else None
        turns.append({"role": role, "content": text[start : end.start() if end else None]})
        if boundary is None or end is None:
            return turns
        role = boundary.roles[next(i for i in range(len(boundary.roles)) if end[f"b{i}"])]
        start = end.end()


def _finished(turns: list[Message], grammar: _Grammar) -> Iterator[list[Message]]:
    """The turns with the last one's closing off or on, and decorations off or on."""
    *earlier, last = turns
    role, content = last["role"], last["content"]
    if earlier and role == "assistant" and not content:
        # Before a generation prompt, the turn before it was the template's last.
        for before in _undecorated(earlier[-1], grammar):
            yield [*earlier[:-1], before, last]
    closings = sorted(grammar.closings[role] - {""}, key=len, reverse=True)
    ends = [content.removesuffix(closing) for closing in closings if content.endswith(closing)]
    for end in ends:
        for closed in _undecorated({"role": role, "content": end}, grammar):
            if role == "user":
                # A template without a generation prompt: the closed turn asks for an answer.
                yield [*earlier, closed, {"role": "assistant", "content": ""}]
            yield [*earlier, closed]
    for opened in _undecorated(last, grammar):
        yield [*earlier, opened]


def _undecorated(turn: Message, grammar: _Grammar) -> Iterator[Message]:
    """The turn without each decoration that its content begins with, then as it is."""
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
    variables = None if date is None else {"strftime_now": lambda _format: date}
    try:
        opened = render_messages(messages, tokenizer, variables)
        if strip_bos(opened, tokenizer) == text:
            return True
        closed = apply_template(messages, tokenizer, template_variables=variables)
    except InvalidInput:
        return False
    return strip_bos(closed, tokenizer) == text
