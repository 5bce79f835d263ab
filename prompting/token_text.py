"""How a token stands in its text, and which token a shown one is.

A tokenizer's `decode([id])` doesn't say: with `clean_up_tokenization_spaces` it turns " ." into
".", decoders of the sentencepiece kind drop the leading space of whatever comes first, and part of
a character becomes U+FFFD. Here a token is what the tokenizer's own decoder adds between two other
tokens, so that the tokens of a prompt, joined, are the prompt as the model saw it. What a
normalizer changed on the way in stays changed.

A token that isn't whole characters is shown as its bytes, `<0xF0><0x9F>`, and `joined` takes them
back. A token that is whole characters is shown as those, even where the vocabulary calls it
`<0x0A>`. A token without text shows `<id 7>`.

Knows a Hugging Face tokenizer and no model; imports neither transformers nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"


def joined(shown: Iterable[str]) -> str:
    """The text of shown tokens in their order; bytes that are no character become U+FFFD."""
    return b"".join(map(_from_shown, shown)).decode("utf-8", "replace")


class TokenText:
    """The tokens of one tokenizer as they stand in a text; each is worked out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = _decoder_of(tokenizer)
        self._added = tokenizer.added_tokens_decoder
        # An ordinary token to stand beside the others: a letter, where there is one.
        self._anchor = [*tokenizer.all_special_ids, *self._encode("a a")][-1:]
        self._head = self._decode(self._anchor)
        self._tail = self._decode(self._anchor * 2).removeprefix(self._head)
        self._bytes = _Memo(self._as_bytes)
        self._shown = _Memo(lambda token_id: _as_shown(self._bytes[token_id]))
        self._ids: dict[str, int] | None = None

    def single(self, token_id: int) -> str:
        """A token as it stands after others."""
        return self._shown[token_id]

    def singles(self, token_ids: Iterable[int]) -> list[str]:
        """Tokens, each as it stands after others."""
        return list(map(self._shown.__getitem__, token_ids))

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens of a text from its beginning; `joined` gives `text` of them."""
        leading = [_as_shown(self._as_bytes(n, leading=True)) for n in token_ids[:1]]
        return leading + self.singles(token_ids[1:])

    def text(self, token_ids: Sequence[int], start: int = 0) -> str:
        """The text of tokens, of which the first begins it, from the token at `start` on."""
        leading = [self._as_bytes(n, leading=True) for n in token_ids[:1]]
        parts = leading + [self._bytes[n] for n in token_ids[1:]]
        return b"".join(parts[start:]).decode("utf-8", "replace")

    def id_of(self, shown: str) -> int | None:
        """The token that is shown so, or that the tokenizer reads this text as; None if there is
        no such token, or the text is several.

        Of tokens that show the same it is the one that the tokenizer gives for that text, alone or
        within a line, and failing that the first. Text comes before bytes: where "<0xF0>" itself is
        one token, it is meant.
        """
        read = self._encode(shown)
        for ids in (read, self._encode_within(shown)):
            if len(ids) == 1 and self.single(ids[0]) == shown:
                return ids[0]
        by_shown = self._by_shown()
        if shown in by_shown:
            return by_shown[shown]
        byte = self._named(shown) if _BYTE.fullmatch(shown) else None
        if byte is not None and self._bytes[byte] == _from_shown(shown):
            return byte
        return read[0] if len(read) == 1 and not self._is_unknown(read[0], shown) else None

    def read_as(self, text: str) -> list[str]:
        """The tokens that the tokenizer reads a text as, as they are shown."""
        return self.singles(self._encode(text))

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

    def _named(self, name: str) -> int | None:
        """The token that the vocabulary spells so."""
        found = self._tokenizer.convert_tokens_to_ids(name)
        return found if found is not None and self._name(found) == name else None

    def _name(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, None where it has none."""
        return self._tokenizer.convert_ids_to_tokens(token_id)

    def _by_shown(self) -> dict[str, int]:
        """The first id of each shown token, for the whole vocabulary.

        Made when first needed, for what no encoding gives: seconds for a large vocabulary.
        """
        if self._ids is None:
            ids = sorted(self._tokenizer.get_vocab().values(), reverse=True)
            self._ids = {_as_shown(self._as_bytes(n)): n for n in ids}
        return self._ids

    def _as_bytes(self, token_id: int, *, leading: bool = False) -> bytes:
        """What a token adds to a text, in UTF-8; never nothing."""
        name = self._name(token_id)
        if not name:
            return f"<id {token_id}>".encode()
        text = self._between(token_id, leading=leading) or name
        if token_id in self._added and self._is_spoilt(self._added[token_id], text):
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

    @staticmethod
    def _is_spoilt(added: AddedToken, text: str) -> bool:
        """Whether a decoder, made for the vocabulary's spelling, changed an added token's text.

        A token that isn't special may well be spelt as the vocabulary does, as Gemma's runs of
        spaces are.
        """
        lost = _REPLACEMENT in text and _REPLACEMENT not in added.content
        return lost or (added.special and text.removeprefix(" ") != added.content)


_Value = TypeVar("_Value")


class _Memo(dict[int, _Value]):
    """Values by token id, each made when it is first asked for."""

    def __init__(self, make: Callable[[int], _Value]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> _Value:
        value = self[token_id] = self._make(token_id)
        return value


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """A tokenizer's decoder alone, which cleans nothing up."""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens=False)
    return lambda ids: tokenizer.decode(
        ids, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )


def _as_shown(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)


def _from_shown(shown: str) -> bytes:
    if _BYTES.fullmatch(shown):
        return bytes(int(digits, 16) for digits in _BYTE.findall(shown))
    return shown.encode()


def _bytes_named(name: str) -> bytes | None:
    """The bytes that a vocabulary spells `<0xF0>`, or as byte-level ones do."""
    if _BYTE.fullmatch(name):
        return _from_shown(name)
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in name)
    except KeyError:
        return None


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level vocabularies (GPT-2's): bytes that print are themselves."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {
        chr(256 + at): byte for at, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER = _byte_of_character()
