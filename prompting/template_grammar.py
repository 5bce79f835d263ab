"""What a chat template writes around the contents of messages, learnt from the template itself.

The template is rendered with marked contents for every short run of roles, and the rendering is
cut at the marks. No model family is named here. The texts around contents are:

- an *opening* before the first content (which may hold a system block of the template's own),
- a *joint* between two contents: the end of a turn and the header of the next,
- a *closing* after the last content, which joints begin with,
- a *header*: a joint without its closing,
- a *decoration*: what is added before the content of a trailing turn and of no other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from errors import InvalidInput
from prompting.chat_template import ROLES, apply_template, strip_bos
from prompting.template_process import TemplateTooCostly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ByRole = defaultdict[str, set[str]]  # texts, by the role of the turn that they belong to
_by_role: Callable[[], ByRole] = partial(defaultdict, set)

DATE = "\ue004"  # stands for a date that the template writes

# Every run of up to three roles, and longer ones for templates that want strict alternation.
_PROBES: list[tuple[str, ...]] = [
    *(roles for n in (3, 2, 1) for roles in product(ROLES, repeat=n)),
    ("user", "assistant") * 2,
    ("user", "assistant") * 2 + ("user",),
    ("system", *("user", "assistant") * 2),
]
_MARK = "\ue002{}\ue003"
# Of a template's own text around a probe. Patterns are made of it, whose size takes time; those of
# real templates have hundreds of characters.
_MOST_CHARACTERS = 100_000
_ANY_MARK = re.compile("\ue002\\d+\ue003")


@dataclass
class Grammar:
    """The texts around contents, by the role of the turn: the last for closings, else the next."""

    openings: ByRole = field(default_factory=_by_role)
    # By whether it follows the first turn, and by the role before it.
    joints: defaultdict[tuple[bool, str], ByRole] = field(
        default_factory=lambda: defaultdict(_by_role)
    )
    closings: ByRole = field(default_factory=_by_role)
    headers: ByRole = field(default_factory=_by_role)
    decorations: ByRole = field(default_factory=_by_role)

    def before(self, i: int, roles: Sequence[str]) -> ByRole:
        """What can stand before turn `i` of turns with these roles."""
        return self.openings if i == 0 else self.joints[i == 1, roles[i - 1]]


def learn(tokenizer: PreTrainedTokenizerBase) -> Grammar:
    """Render every run of roles that the template takes, and collect what is around contents.

    Raises TemplateTooCostly when it takes more time or memory than it may.
    """
    grammar = Grammar()
    rendered = {roles: _pieces(roles, tokenizer) for roles in _PROBES}
    taken = {roles: pieces for roles, pieces in rendered.items() if pieces}
    for roles, pieces in taken.items():
        grammar.closings[roles[-1]].add(pieces[-1])
        for i, role in enumerate(roles[:-1]):
            grammar.before(i, roles)[role].add(pieces[i])
    for roles, pieces in taken.items():
        _learn_before_last(roles, pieces[-2], grammar)
    for (_, role), joints in grammar.joints.items():
        for following, texts in joints.items():
            for joint, closing in product(texts, grammar.closings[role]):
                if joint.startswith(closing) and joint != closing:
                    grammar.headers[following].add(joint.removeprefix(closing))
    _learn_generation_prompt(tokenizer, grammar)
    for known in (grammar.openings, grammar.headers, *grammar.joints.values()):
        _drop_ambiguous(known)
    return grammar


def _pieces(
    roles: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, *, generation: bool = False
) -> list[str] | None:
    """The n + 1 texts around n contents, or None where the template refuses or changes them."""
    marks = [_MARK.format(i) for i in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        rendered = apply_template(
            messages,
            tokenizer,
            add_generation_prompt=generation,
            date=DATE,
        )
    except TemplateTooCostly:
        raise
    except InvalidInput:
        return None
    if len(rendered) > _MOST_CHARACTERS:
        raise TemplateTooCostly(
            f"messages: the model's chat template writes {len(rendered)} characters around short "
            f"messages, and {_MOST_CHARACTERS} are the most; send prompt instead"
        )
    if _ANY_MARK.findall(rendered) != marks:
        return None
    return _ANY_MARK.split(strip_bos(rendered, tokenizer))


def _learn_before_last(roles: tuple[str, ...], piece: str, grammar: Grammar) -> None:
    """Learn from what is before the last content, which may end with a decoration."""
    role = roles[-1]
    plain = grammar.before(len(roles) - 1, roles)[role]
    beginnings = [text for text in plain if piece.startswith(text)]
    if beginnings and piece not in plain:
        grammar.decorations[role].add(piece.removeprefix(max(beginnings, key=len)))
    else:
        plain.add(piece)


def _learn_generation_prompt(tokenizer: PreTrainedTokenizerBase, grammar: Grammar) -> None:
    """Learn from a generation prompt, which may be longer or shorter than a joint.

    What it has after the header (an open think block) is a decoration. If it stops within the
    header, for the model to write the rest (a channel), it is a joint of its own.
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
                grammar.joints[after_first, "user"]["assistant"].add(prompt)
            grammar.headers["assistant"].add(prompt.removeprefix(closing))


def _drop_ambiguous(known: ByRole) -> None:
    """Drop texts that don't identify a role: blank ones, and those that an earlier role has too.

    The user and the assistant come before the system: a template without a system role may put
    the system text into the first user turn, where it looks like the user's own.
    """
    seen: set[str] = set()
    for role in ("user", "assistant", "system"):
        known[role] = {text for text in known[role] if text.strip()} - seen
        seen |= known[role]
