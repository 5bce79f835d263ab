"""Token strings: what each token adds to a text, and which token has a given string.

A tokenizer's `decode([id])` isn't that: with `clean_up_tokenization_spaces` it turns " ." into
".", decoders of the sentencepiece kind drop the leading space of whatever comes first, and part of
a character becomes U+FFFD. Here a token's string is what the tokenizer's own decoder adds between
two other tokens, so that the strings of a prompt, joined, are the prompt as the model saw it. What
a normalizer changed before stays changed.

A token that isn't whole characters has its bytes as its string, `<0xF0><0x9F>`, and `joined`
reads them as bytes again. A token that is whole characters has these, even where the vocabulary
spells it `<0x0A>`. A token without text is `<id 7>`.

Knows a Hugging Face tokenizer and no model; imports neither transformers nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"
_KEPT_IDS = 10_000


def joined(token_strings: Iterable[str]) -> str:
    """The text of tokens in their order; bytes that are no character become U+FFFD."""
    return b"".join(map(_bytes_of, token_strings)).decode("utf-8", "replace")


class TokenText:
    """The token strings of one tokenizer. Each is computed once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = _decoder_of(tokenizer)
        self._added = tokenizer.added_tokens_decoder
        # An ordinary token to put beside the others: a letter, where there is one.
        self._anchor = [*tokenizer.all_special_ids, *self._encode("a a")][-1:]
        self._head = self._decode(self._anchor)
        self._tail = self._decode(self._anchor * 2).removeprefix(self._head)
        self._bytes = cache(self._text_bytes)
        # A request may name the same tokens a thousand times.
        self._ids = lru_cache(_KEPT_IDS)(self._find)

    def single(self, token_id: int) -> str:
        """The string of a token that comes after others."""
        return _string_of(self._bytes(token_id))

    def singles(self, token_ids: Iterable[int]) -> list[str]:
        """The strings of tokens, each as if it came after others."""
        return list(map(self.single, token_ids))

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """The token strings of a text from its beginning; `joined` turns them into `text`."""
        return list(map(_string_of, self._parts(token_ids)))

    def text(self, token_ids: Sequence[int], start: int = 0) -> str:
        """The text of tokens, of which the first begins it, from the token at `start` on."""
        return b"".join(self._parts(token_ids)[start:]).decode("utf-8", "replace")

    def id_of(self, string: str) -> int | None:
        """The token with this string, or the one token that the tokenizer reads it as, or None.

        Of several tokens with one string it is the one that the tokenizer gives for that text,
        alone or within a line, and if it gives none the first. Text comes before bytes: where
        "<0xF0>" itself is one token, it is meant.
        """
        return self._ids(string)

    def read_as(self, text: str) -> list[str]:
        """The strings of the tokens that the tokenizer reads a text as."""
        return self.singles(self._encode(text))

    def _find(self, string: str) -> int | None:
        read = self._encode(string)
        for ids in (read, self._encode_within(string)):
            if len(ids) == 1 and self.single(ids[0]) == string:
                return ids[0]
        if string in self._id_by_string:
            return self._id_by_string[string]
        byte = self._spelt(string) if _BYTE.fullmatch(string) else None
        if byte is not None and self._bytes(byte) == _bytes_of(string):
            return byte
        return read[0] if len(read) == 1 and not self._is_unknown(read[0], string) else None

    def _parts(self, token_ids: Sequence[int]) -> list[bytes]:
        """What each token of a text, from its beginning, adds to it."""
        leading = [self._bytes(n, leading=True) for n in token_ids[:1]]
        return leading + [self._bytes(n) for n in token_ids[1:]]

    def _is_unknown(self, read: int, text: str) -> bool:
        """Whether text is read as a special token that it doesn't spell."""
        special = read in self._tokenizer.all_special_ids
        return special and self.strings([read])[0].strip() != text.strip()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _encode_within(self, text: str) -> list[int]:
        """The tokens of a text after a line break, where nothing is put before it."""
        before, whole = self._encode("\n"), self._encode("\n" + text)
        return whole[len(before) :] if whole[: len(before)] == before else []

    def _spelt(self, name: str) -> int | None:
        """The token that the vocabulary spells like this."""
        found = self._tokenizer.convert_tokens_to_ids(name)
        return found if found is not None and self._name(found) == name else None

    def _name(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, None where it has none."""
        return self._tokenizer.convert_ids_to_tokens(token_id)

    @cached_property
    def _id_by_string(self) -> dict[str, int]:
        """The first id of each token string of the vocabulary.

        Only needed for strings that no encoding gives: a large vocabulary takes seconds.
        """
        ids = sorted(self._tokenizer.get_vocab().values(), reverse=True)
        return {_string_of(self._text_bytes(n)): n for n in ids}

    def _text_bytes(self, token_id: int, *, leading: bool = False) -> bytes:
        """What a token adds to a text, in UTF-8; never nothing."""
        name = self._name(token_id)
        if not name:
            return f"<id {token_id}>".encode()
        text = self._between(token_id, leading=leading) or name
        if token_id in self._added and _is_spoilt(self._added[token_id], text):
            return name.encode()
        if _REPLACEMENT not in text:
            return text.encode()
        data = _bytes_named(name)
        if data is not None and data.decode("utf-8", "replace") == text:
            return data
        return (text if _REPLACEMENT in name else name).encode()

    def _between(self, token_id: int, *, leading: bool) -> str:
        """What a token adds between two others, or before another."""
        around = self._decode([*([] if leading else self._anchor), token_id, *self._anchor])
        return around.removeprefix("" if leading else self._head).removesuffix(self._tail)


def _is_spoilt(added: AddedToken, text: str) -> bool:
    """Whether a decoder, made for the vocabulary's spelling, changed an added token's text.

    A token that isn't special may be spelt as the vocabulary does, as Gemma's runs of spaces are.
    """
    lost = _REPLACEMENT in text and _REPLACEMENT not in added.content
    return lost or (added.special and text.removeprefix(" ") != added.content)


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """A tokenizer's decoder alone, which cleans nothing up."""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens=False)
    return lambda ids: tokenizer.decode(
        ids, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )


def _string_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)


def _bytes_of(string: str) -> bytes:
    if _BYTES.fullmatch(string):
        return bytes(int(digits, 16) for digits in _BYTE.findall(string))
    return string.encode()


def _bytes_named(name: str) -> bytes | None:
    """The bytes that a vocabulary spells `<0xF0>`, or as byte-level ones do."""
    if _BYTE.fullmatch(name):
        return _bytes_of(name)
    try:
        return bytes(_byte_of_character()[character] for character in name)
    except KeyError:
        return None


@cache
def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level vocabularies."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
