"""A tiny tokenizer of every kind: how it splits text, and how its decoder joins tokens.

Those of the served families are in `tiny_tokenizers`; the rest are here, each with the normalizer,
pre-tokenizer and decoder of real ones.
"""

import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from tests.support import tiny_models, tiny_tokenizers

_WORDS = ("▁the", "▁capital", "▁is", "▁▁", "the", "is", "▁.", "▁<0x")
_SENTENCEPIECE_DECODER = (
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)


def cleaned_up() -> PreTrainedTokenizerFast:
    """As Llama 3's, whose `decode` drops the space of " ." and " ,"; both are tokens here."""
    tokenizer = tiny_tokenizers.llama3()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for mark in ".,":
        state["model"]["vocab"]["Ġ" + mark] = len(tokenizer) + ord(mark)
        state["model"]["merges"].append(["Ġ", mark])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=True,
        chat_template=tokenizer.chat_template,
    )


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is put before each text, and a character may be bytes.

    A tab and a line break are single bytes, and `<0x41>` stands for the same text as `A`. The run
    of two spaces is an added token too, as Gemma's are.
    """
    backend = Tokenizer(_fallback_bpe())
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _with_s(backend)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """As Mistral's: the same, but only the beginning of a prompt gets the space."""
    backend = Tokenizer(_fallback_bpe())
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return _with_s(backend)


def metaspace_unigram() -> PreTrainedTokenizerFast:
    """A Unigram model with bytes, split at spaces; none is put in front."""
    names = ["<unk>", "<s>", "</s>", *_bytes(), *_characters(), *_WORDS, "▁a\u0301", "\ufffd"]
    pieces = [(name, len(name) - 12.0) for name in names]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="never")]
    )
    return _with_bos(backend)


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: spaces aren't kept, and a word's later pieces begin with `##`."""
    words = ["the", "capital", "ing", "##ing", "##s", "is", ".", "##", *map(chr, range(97, 123))]
    names = ["[PAD]", "[UNK]", "[CLS]", *words, *(f"##{chr(c)}" for c in range(97, 123))]
    vocabulary = {name: n for n, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece("##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[CLS]", pad_token="[PAD]", unk_token="[UNK]"
    )


def runs_of_spaces() -> PreTrainedTokenizerFast:
    """As Pythia's: byte-level, and runs of spaces are added tokens besides those it has.

    Two tokens take the spaces around them with them.
    """
    end = "<|endoftext|>"
    backend = tiny_tokenizers.byte_level([end])
    backend.add_tokens([AddedToken(" " * n, normalized=False) for n in (2, 3, 4)])
    backend.add_special_tokens(
        [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)


def byte_level_of(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of this vocabulary, which joins nothing."""
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)


def _fallback_bpe() -> models.BPE:
    names = ["<unk>", "<s>", "</s>", *_bytes(), *_characters()]
    merges = []
    for word in _WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return models.BPE(
        {name: n for n, name in enumerate(names)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )


def _bytes() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _characters() -> list[str]:
    return ["▁", *map(chr, range(0x21, 0x7F)), "é", "日", "م", "\u0301"]


def _with_s(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.decoder = decoders.Sequence(list(_SENTENCEPIECE_DECODER))
    return _with_bos(backend)


def _with_bos(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": tiny_tokenizers.gpt2,
    "byte-level, no BOS": tiny_tokenizers.qwen3,
    "byte-level, cleaned up": cleaned_up,
    "byte-level, runs of spaces": runs_of_spaces,
    "byte fallback": tiny_tokenizers.gemma2,
    "byte fallback, Gemma 3": tiny_tokenizers.gemma3,
    "sentencepiece": sentencepiece_bpe,
    "metaspace": metaspace_bpe,
    "Unigram": metaspace_unigram,
    "WordPiece": word_pieces,
    "WordLevel": tiny_models.word_tokenizer,
}
# Whose tokens hold the whole text: nothing is lower-cased, dropped, put in front or unknown.
FAITHFUL = sorted(set(KINDS) - {"sentencepiece", "metaspace", "WordPiece", "WordLevel"})
# Whose normalizer makes "▁" a space.
SPELT_WITH_BARS = ("byte fallback", "byte fallback, Gemma 3", "Unigram")
