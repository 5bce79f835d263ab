"""How text becomes tokens, once for every action.

A prompt is raw text, or chat messages rendered with the model's own template. Every position of the
interface counts its tokens. For a circuit-tracer replacement model they always begin with a special
token, which has no features; the rules are those of circuit-tracer's `ensure_tokenized`, so that a
graph of the same text has the same nodes. A complete replacement model reads what the tokenizer
itself makes of the text, and has features at every position (`leading_token=False`).

Knows a Hugging Face tokenizer and no model; imports neither transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import Internal, InvalidInput, PromptTooLong
from prompting import gemma_3_chat
from prompting.chat_template import (
    Message,
    apply_template,
    refuse_surrogates,
    render_messages,
    strip_bos,
)
from prompting.template_process import TemplateTooCostly
from prompting.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The longest tokens of the served families have 128 characters (runs of spaces).
MAX_CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True)
class Prompt:
    """A checked prompt: its text as given or rendered, and its tokens with the leading one.

    `text_start` is the position of the text's first token: 1 behind a leading token, else 0.
    """

    text: str
    ids: list[int]
    unsteerable_positions: list[int]
    text_start: int


def prepare(
    prompt: str | Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_limit: int,
    limit_name: str = "the limit",
    model_name: str = "",
    leading_token: bool = True,
) -> Prompt:
    """Render, tokenise and check a text or chat messages.

    What is certainly too long is refused before the work of rendering or tokenising it.
    `leading_token` is that of `tokenize`.

    Raises InvalidInput for what can't be rendered, tokenised or attributed, PromptTooLong above
    `token_limit` tokens (the leading special token counts), in whose sentence the limit has
    `limit_name`.
    """
    limit = f"{limit_name} is {token_limit}"
    if isinstance(prompt, str):
        text = prompt
    else:
        if len(prompt) > token_limit:
            raise PromptTooLong(f"there are {len(prompt)} messages, {limit} tokens")
        n_characters = sum(len(message["content"]) for message in prompt)
        _check_characters(n_characters, token_limit, limit)
        text = render_messages(prompt, tokenizer)
    if not text:
        raise InvalidInput("prompt is empty; it must have at least one character")
    _check_characters(len(text), token_limit, limit)
    ids = tokenize(text, tokenizer, model_name, leading_token=leading_token)
    if len(ids) > token_limit:
        raise PromptTooLong(f"the prompt has {len(ids)} tokens, {limit}")
    if not leading_token:
        if not ids:
            raise InvalidInput("prompt has no token: the model's tokenizer drops all of its text")
        return Prompt(text, ids, [], int(ids[0] == tokenizer.bos_token_id))
    unsteerable = unsteerable_positions(ids, model_name)
    if len(ids) == len(unsteerable) or set(ids) <= _special_ids(tokenizer):
        beginning = "".join(TokenText(tokenizer).strings(ids[:8]))
        raise InvalidInput(
            f"prompt has only special tokens ({beginning!r}, {len(ids)} in all), which have no "
            "features; add text after them"
        )
    return Prompt(text, ids, unsteerable, 1)


def tokenize(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    model_name: str = "",
    *,
    leading_token: bool = True,
) -> list[int]:
    """The n token ids of a prompt.

    With `leading_token` the first is always a special token. The rules are those of
    `ensure_tokenized` in circuit_tracer/replacement_model/common.py. A special token that the text
    begins with is kept. Otherwise the BOS goes in front, or if there is none, the pad, EOS or any
    other special token. Three cases differ, where the library is wrong: an id of 0 counts, empty
    text is that token alone, and a chat prompt that lost the BOS its template writes gets it back,
    so that positions are those of the graph.

    Without `leading_token` they are what the tokenizer itself gives for the text, with a BOS where
    it adds one. Only two of the rules above hold: a BOS that the text begins with is not given a
    second, and a chat prompt gets the BOS back that its template writes.

    Raises InvalidInput for text that isn't Unicode, and for a Gemma 3 it prompt that doesn't begin
    with its user turn; Internal when the tokenizer has no special token.
    """
    ids = _encode(prompt, tokenizer)
    if not leading_token:
        return _as_the_tokenizer_has_it(prompt, ids, tokenizer)
    if gemma_3_chat.is_gemma_3_it(model_name):
        return gemma_3_chat.with_bos(ids, strip_bos(prompt, tokenizer), model_name)
    if ids and ids[0] in tokenizer.all_special_ids and not _lost_its_bos(ids, tokenizer):
        return ids
    return [_leading_special_id(tokenizer), *ids]


def _as_the_tokenizer_has_it(
    prompt: str, ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The tokens of a text, whose own tokens are `ids`, with the BOS that it should have."""
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] == [bos]:
        return ids
    if ids and _lost_its_bos(ids, tokenizer):
        return [bos, *ids]
    with_added: list[int] = tokenizer.encode(prompt, verbose=False)
    return with_added


def unsteerable_positions(ids: Sequence[int], model_name: str = "") -> list[int]:
    """The positions whose features circuit-tracer holds at zero (its models' `zero_positions`).

    That is the leading special token, or for Gemma 3 chat models all four of their prefix.
    """
    is_gemma_3_it = gemma_3_chat.is_gemma_3_it(model_name)
    return list(range(len(ids)))[: len(gemma_3_chat.PREFIX) if is_gemma_3_it else 1]


def _check_characters(n_characters: int, token_limit: int, limit: str) -> None:
    if n_characters > token_limit * MAX_CHARACTERS_PER_TOKEN:
        raise PromptTooLong(
            f"the prompt has {n_characters} characters, {limit} tokens "
            f"(at most {MAX_CHARACTERS_PER_TOKEN} characters each)"
        )


def _encode(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the text alone, special tokens in it recognised and none added."""
    refuse_surrogates(prompt, "prompt")
    return tokenizer.encode(prompt, add_special_tokens=False, verbose=False)


def _leading_special_id(tokenizer: PreTrainedTokenizerBase) -> int:
    candidates = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    for token_id in [*candidates, *tokenizer.all_special_ids]:
        if token_id is not None:
            return int(token_id)
    raise Internal(
        "the model's tokenizer has no special token to lead a prompt; set its BOS, pad or EOS token"
    )


def _lost_its_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text begins as the template's renderings do after their BOS."""
    bos = tokenizer.bos_token_id
    if bos is None or ids[0] == bos or not tokenizer.chat_template:
        return False
    try:
        opening = apply_template([{"role": "user", "content": "text"}], tokenizer)
    except TemplateTooCostly:
        raise
    except InvalidInput:
        return False
    return _encode(opening, tokenizer)[:2] == [bos, ids[0]]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens: those with a role (BOS), and those marked as such (Llama 3's headers)."""
    marked = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)
