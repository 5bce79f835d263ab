r"""Which parts of a tokenizer.json are known to be quick for every text, and which aren't.

A pattern that goes back, such as `(a+)+$`, takes time without end for some texts, and which it does
so for can't be told from it. So the patterns of published tokenizers are named here, which were
tried with long runs of all kinds of characters. What else a file has may be as quick: then it is
only not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION
)
_UPPER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION
)
QUICK_PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": "|".join((_CONTRACTION, _WORD, r"\p{N}{1,3}", _MARKS, _SPACE)),
    "Qwen": "|".join((_CONTRACTION, _WORD, r"\p{N}", _MARKS, _SPACE)),
    "GPT-OSS": "|".join((f"{_LOWER}?", f"{_UPPER}?", r"\p{N}{1,3}", _MARKS_AND_SLASHES, _SPACE)),
    "sentencepiece": " {2,}",
}
_LITERAL = re.compile(r"[^\\.^$*+?{}\[\]|()]+")
# Their time and memory grow with the text, once they have quick patterns.
_QUICK_TYPES = {
    *("Sequence", "Split", "Replace", "Prepend", "Strip", "TemplateProcessing"),
    *("ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"),
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"),
    *("BertPreTokenizer", "BertProcessing", "RobertaProcessing"),
}
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_QUICK_MODELS = ("BPE", "WordLevel")
_MOST_OBJECTS = 128  # of a part of the file
_DEEPEST = 20
_MOST_PREPENDED = 8
_MOST_ADDED = 32  # special tokens that go around a text


def unknown_parts(state: Mapping[str, Any]) -> list[str]:
    """The fields of a tokenizer.json that are not known to be quick when a text is tokenised.

    Args:
        state: the file's content; of `model` its settings are enough.
    """
    parts = [(name, state.get(name)) for name in _PARTS]
    found = [field for name, part in parts for field in _unknown(name, part)]
    model = state.get("model")
    if isinstance(model, dict):
        if model.get("type") not in _QUICK_MODELS:
            found.append("model.type")
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if len(str(model.get(name) or "")) > _MOST_PREPENDED:
                found.append(f"model.{name}")
    # Space beside such a token is looked for from the text's beginning, at each place of it.
    added = state.get("added_tokens")
    for name in ("lstrip", "rstrip"):
        for n, token in enumerate(added if isinstance(added, list) else []):
            if not isinstance(token, dict) or token.get(name):
                found.append(f"added_tokens[{n}].{name}")
                break
    return found


def unknown_decoders(state: Mapping[str, Any]) -> list[str]:
    """The same of its decoder, which reads what the worker writes: all published ones are quick."""
    found = _unknown("decoder", state.get("decoder"))
    return [field for field in found if not field.endswith(".type")]


def state_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What these functions need of a tokenizer that is loaded."""
    model = tokenizer.model
    state: dict[str, Any] = {
        name: part and json.loads(part.__getstate__())
        for name, part in ((name, getattr(tokenizer, name)) for name in (*_PARTS, "decoder"))
    }
    settings = ("continuing_subword_prefix", "end_of_word_suffix")
    state["model"] = {name: getattr(model, name, None) for name in settings}
    state["model"]["type"] = type(model).__name__
    state["added_tokens"] = [
        {"lstrip": token.lstrip, "rstrip": token.rstrip}
        for token in tokenizer.get_added_tokens_decoder().values()
    ]
    return state


def state_in(content: bytes) -> dict[str, Any]:
    """What a tokenizer.json says.

    Raises:
        ValueError: the content is no JSON, or no object.
    """
    state = json.loads(content)
    if not isinstance(state, dict):
        raise ValueError("it is no object")
    return state


def _unknown(name: str, part: object) -> Iterator[str]:
    """Its fields that aren't known to be quick."""
    if sum(1 for _ in _objects(name, part)) > _MOST_OBJECTS:
        yield name
    for where, each in _objects(name, part):
        kind = each.get("type")
        if isinstance(kind, str) and kind not in _QUICK_TYPES:
            yield f"{where}.type"
        pattern = each.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern and not _is_quick(pattern["Regex"]):
            yield f"{where}.pattern.Regex"
        if kind == "Replace" and _grows(pattern, each.get("content")):
            yield f"{where}.content"
        if len(str(each.get("prepend", ""))) > _MOST_PREPENDED:
            yield f"{where}.prepend"
        for around in ("single", "pair", "ids"):
            added = each.get(around)
            if isinstance(added, list) and len(added) > _MOST_ADDED:
                yield f"{where}.{around}"


def _is_quick(pattern: object) -> bool:
    return isinstance(pattern, str) and (
        pattern in QUICK_PATTERNS.values() or _LITERAL.fullmatch(pattern) is not None
    )


def _grows(pattern: object, content: object) -> bool:
    """Whether what is written for a pattern is longer than it: a chain of such doubles a text."""
    replaced = pattern.get("String", "-") if isinstance(pattern, dict) else pattern
    return len(str(content)) > len(str(replaced))


def _objects(name: str, value: object, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All objects in a part of the file, with their places."""
    if depth > _DEEPEST:
        yield name, {"type": "nested"}
    elif isinstance(value, list):
        for n, each in enumerate(value):
            yield from _objects(f"{name}[{n}]", each, depth + 1)
    elif isinstance(value, dict):
        yield name, value
        for key, each in value.items():
            yield from _objects(f"{name}.{key}", each, depth + 1)
