"""A token is shown as it stands in the text, and a shown token is that token again."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from transformers import GPT2Tokenizer, LlamaTokenizer

from prompting import prompts
from prompting.token_text import TokenText, joined
from tests.support import tiny_tokenizers, tokenizer_kinds
from tests.support.programs import imported_by
from tests.support.tokenizer_kinds import FAITHFUL, KINDS, SPELT_WITH_BARS

TOKENIZERS = {name: build() for name, build in KINDS.items()}
TEXTS = {name: TokenText(tokenizer) for name, tokenizer in TOKENIZERS.items()}
EVERY = sorted(TOKENIZERS)

SAMPLES = [
    *("the capital is .", " ", "  ", "   the", "the  ", " .", " ,", "don 't", "\t", "\n\n"),
    *(
        "🦜",
        "👩\u200d👩\u200d👧",
        "e\u0301",
        "é",
        "né",
        "日本",
        "\u0e19\u0e49\u0e33",
        "שלום",
        "مرحبا",
    ),
    *("\ufffd", "\x00", "\x7f", "\x85", "\u202e", "\u200b", "▁", "Ġ", "##ing", "ing", "w7", "A"),
    *("<bos>", "<s>", "<|im_start|>", "<start_of_turn>", "<left>", "<right>", "[CLS]"),
]
TEXT = st.lists(st.text() | st.sampled_from(SAMPLES), min_size=1).map("".join).filter(bool)
LITERAL = st.lists(st.sampled_from([*SAMPLES, "<0xF0>", "<0x41>", "<0x", "0A>"]), min_size=1)


def plain_decode(ids, tokenizer) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def vocabulary(tokenizer) -> list[int]:
    return sorted(tokenizer.get_vocab().values())


# What is shown


def test_a_token_that_is_named_again_is_not_looked_for_again(monkeypatch):
    tokenizer, asked = TOKENIZERS["WordPiece"], []
    text = TokenText(tokenizer)
    encode = text._encode
    monkeypatch.setattr(text, "_encode", lambda string: asked.append(string) or encode(string))
    assert [text.id_of("the") for _ in range(100)] == [tokenizer.get_vocab()["the"]] * 100
    assert asked.count("the") == 1


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=60)
@given(text=TEXT)
def test_joined_tokens_are_what_the_model_saw(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = prompts.tokenize(text, tokenizer)

    shown = TokenText(tokenizer).strings(ids)

    assert joined(shown) == TEXTS[kind].text(ids) == plain_decode(ids, tokenizer)
    assert len(shown) == len(ids)
    assert "" not in shown
    assert "\ufffd" not in "".join(shown) or "\ufffd" in text


@pytest.mark.parametrize("kind", FAITHFUL)
@settings(max_examples=60)
@given(text=TEXT.filter(lambda text: "<" not in text))
def test_joined_tokens_after_the_leading_one_are_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    if kind in SPELT_WITH_BARS:
        text = text.replace("▁", " ")

    ids = prompts.tokenize(text, tokenizer)

    assert joined(TokenText(tokenizer).strings(ids)[1:]) == text
    assert TEXTS[kind].text(ids, start=1) == text


@pytest.mark.parametrize("kind", sorted(set(FAITHFUL) - {"Unigram"}))
@settings(max_examples=30)
@given(texts=LITERAL)
def test_text_that_looks_like_bytes_is_text(kind: str, texts: list[str]) -> None:
    """Unigram is left out: it reads "<0xF0>" as the byte, as its own decoder does."""
    tokenizer = TOKENIZERS[kind]
    text = "a" + "".join(texts).replace("<left>", "").replace("<right>", "")
    if kind in SPELT_WITH_BARS:
        text = text.replace("▁", " ")

    shown = TokenText(tokenizer).strings(prompts.tokenize(text, tokenizer))

    assert joined(shown[1:]) == text


@pytest.mark.parametrize("kind", EVERY)
def test_every_token_shows_something_and_none_a_replacement_character(kind: str) -> None:
    texts, tokenizer = TEXTS[kind], TOKENIZERS[kind]

    shown = texts.singles(vocabulary(tokenizer))

    assert "" not in shown
    with_mark = [text for text in shown if "\ufffd" in text]
    assert with_mark == (["\ufffd"] if kind == "Unigram" else [])


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=60)
@given(data=st.data())
def test_any_tokens_joined_are_their_text(kind: str, data: st.DataObject) -> None:
    """A continuation can end within a character, or hold bytes that are none."""
    ids = data.draw(st.lists(st.sampled_from(vocabulary(TOKENIZERS[kind])), min_size=1))

    shown = TEXTS[kind].strings(ids)

    assert shown[1:] == TEXTS[kind].singles(ids[1:])
    assert joined(shown[1:]) == TEXTS[kind].text(ids, start=1)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("byte-level, cleaned up", "one . two", [" ."]),
        ("byte-level", "a🦜", ["<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>"]),
        ("byte fallback", "a🦜", ["<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>"]),
        ("byte fallback", "in the", [" the"]),
        ("sentencepiece", "the capital", [" the", " capital"]),
        ("sentencepiece", "a\tb\n", ["\t", "\n"]),
        ("sentencepiece", "the é", [" ", "é"]),
        ("sentencepiece", "ü", ["<0xC3>", "<0xBC>"]),
        ("metaspace", "the capital", [" the", " capital"]),
        ("Unigram", "is the", ["is", " the"]),
        ("Unigram", "is \ufffd", [" ", "\ufffd"]),
        ("byte-level", "\ufffd", ["<0xEF>", "<0xBF>", "<0xBD>"]),
        ("WordPiece", "the capitals.", [" the", " capital", "s", "."]),
        ("WordLevel", "w7 w8", [" w7", " w8"]),
        ("byte-level, runs of spaces", "a   b  c", ["   ", "  "]),
        ("byte-level, runs of spaces", "a  <left>b<right>  c", ["<left>", "<right>"]),
        ("byte fallback, Gemma 3", "<start_of_turn>user\n", ["<start_of_turn>", "user", "\n"]),
    ],
)
def test_a_token_is_shown_as_it_stands(kind: str, text: str, expected: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]

    shown = TokenText(tokenizer).strings(prompts.tokenize(text, tokenizer))

    assert [token for token in shown if token in expected] == expected


def test_the_bytes_of_one_token_are_shown_together() -> None:
    """A space and the first two bytes of an emoji are one token in GPT-2."""
    vocabulary = {**tiny_tokenizers.gpt2().get_vocab(), "ðŁ": 500, "ĠðŁ": 501}
    texts = TokenText(tokenizer_kinds.byte_level_of(vocabulary))

    assert texts.singles([500, 501]) == ["<0xF0><0x9F>", "<0x20><0xF0><0x9F>"]
    assert [texts.id_of(shown) for shown in texts.singles([500, 501])] == [500, 501]


@pytest.mark.parametrize("content", ["né", "ĠðŁ", "<｜begin▁of▁sentence｜>"])
@pytest.mark.parametrize("build", [tiny_tokenizers.gpt2, tokenizer_kinds.metaspace_bpe])
def test_an_added_token_is_shown_as_it_is_written(build, content: str) -> None:
    """Decoders are made for the vocabulary's spelling, and spoil other text."""
    tokenizer = build()
    tokenizer.add_tokens([content], special_tokens=True)

    assert TokenText(tokenizer).single(len(tokenizer) - 1) == content
    assert TokenText(tokenizer).id_of(content) == len(tokenizer) - 1


def test_the_leading_token_is_shown_without_what_stands_before_it_elsewhere() -> None:
    tokenizer = TOKENIZERS["WordPiece"]
    ids = prompts.tokenize("the", tokenizer)

    assert TokenText(tokenizer).strings(ids) == ["[CLS]", " the"]
    assert TEXTS["WordPiece"].id_of("[CLS]") == ids[0]


def test_an_id_without_a_token_shows_its_number() -> None:
    """Models have more rows in their embedding than their tokenizer has tokens."""
    assert TEXTS["byte-level"].single(9999) == "<id 9999>"
    assert TEXTS["byte-level"].text([0, 9999], start=1) == "<id 9999>"


# A shown token as a target


@pytest.mark.parametrize("kind", EVERY)
def test_every_token_as_it_is_shown_is_that_token(kind: str) -> None:
    """Or, of those that show the same, one: the one that the tokenizer gives, as below."""
    texts, ids = TEXTS[kind], vocabulary(TOKENIZERS[kind])
    shown = texts.singles(ids)
    times = Counter(shown)

    found = [texts.id_of(text) for text in shown]

    assert None not in found
    assert texts.singles(n for n in found if n is not None) == shown
    alone = [times[text] == 1 for text in shown]
    assert [i for i, is_alone in zip(found, alone, strict=True) if is_alone] == [
        i for i, is_alone in zip(ids, alone, strict=True) if is_alone
    ]


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=60)
@given(text=TEXT)
def test_every_token_of_a_prompt_is_found_by_what_it_shows(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = prompts.tokenize(text, tokenizer)

    shown = TokenText(tokenizer).strings(ids)

    assert [TEXTS[kind].id_of(token) for token in shown] == ids


@pytest.mark.parametrize(
    ("kind", "shown", "other"),
    [
        ("byte-level, runs of spaces", "  ", "ĠĠ"),
        ("byte fallback", "\n", "<0x0A>"),
        ("sentencepiece", "A", "<0x41>"),
        ("metaspace", "A", "<0x41>"),
        ("Unigram", "A", "<0x41>"),
    ],
)
def test_of_two_tokens_with_one_text_the_target_is_what_the_tokenizer_gives(
    kind: str, shown: str, other: str
) -> None:
    tokenizer, texts = TOKENIZERS[kind], TEXTS[kind]
    given = tokenizer.convert_tokens_to_ids(shown)

    assert texts.single(tokenizer.convert_tokens_to_ids(other)) == shown
    assert texts.id_of(shown) == given
    assert given in prompts.tokenize(f"({shown}(", tokenizer)


@pytest.mark.parametrize("kind", ["byte fallback", "sentencepiece", "metaspace", "Unigram"])
def test_a_byte_that_is_a_character_can_be_named_by_its_byte(kind: str) -> None:
    """It shows the character, which may be another token's text too."""
    byte = TOKENIZERS[kind].convert_tokens_to_ids("<0x0A>")

    assert TEXTS[kind].single(byte) == "\n"
    assert TEXTS[kind].id_of("<0x0A>") == byte


@pytest.mark.parametrize(
    ("build", "expected"), [(tokenizer_kinds.metaspace_bpe, "<0xF0>"), (tiny_tokenizers.gpt2, "ð")]
)
def test_bytes_as_a_target_are_the_token_of_these_bytes(build, expected: str) -> None:
    tokenizer = build()

    assert TokenText(tokenizer).id_of("<0xF0>") == tokenizer.convert_tokens_to_ids(expected)


def test_text_that_looks_like_bytes_and_is_one_token_wins() -> None:
    tokenizer = tiny_tokenizers.gpt2()
    tokenizer.add_tokens(["<0xF0>"])

    assert TokenText(tokenizer).id_of("<0xF0>") == len(tokenizer) - 1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("byte-level", " joue au"),
        ("byte-level", "🦜"),
        ("byte-level", "<0xF0><0x9F>"),
        ("byte-level", "<0xf0>"),
        ("byte-level", "\ufffd"),
        ("byte-level", ""),
        ("byte-level", "<id 9999>"),
        ("WordLevel", "basket"),
        ("WordPiece", "🦜"),
    ],
)
def test_what_is_no_token_is_none(kind: str, text: str) -> None:
    assert TEXTS[kind].id_of(text) is None


def test_what_a_normalizer_changes_is_the_token_it_becomes() -> None:
    tokenizer = TOKENIZERS["WordPiece"]

    assert TEXTS["WordPiece"].id_of("Capital") == tokenizer.convert_tokens_to_ids("capital")
    assert TEXTS["WordPiece"].id_of("ing") == tokenizer.convert_tokens_to_ids("##ing")
    assert TEXTS["WordPiece"].id_of(" ing") == tokenizer.convert_tokens_to_ids("ing")


def test_a_slow_tokenizer_shows_the_same(tmp_path) -> None:
    fast = tiny_tokenizers.gpt2()
    fast.save_pretrained(tmp_path)
    fast.backend_tokenizer.model.save(str(tmp_path))
    slow = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    text = "The capital . of 🦜  é\n <|endoftext|>"
    ids = prompts.tokenize(text, fast)

    assert prompts.tokenize(text, slow) == ids
    assert TokenText(slow).strings(ids) == TokenText(fast).strings(ids)
    assert [TokenText(slow).id_of(t) for t in TokenText(slow).strings(ids)] == ids


def test_a_slow_sentencepiece_tokenizer_shows_its_spaces_and_special_tokens(tmp_path) -> None:
    """Its own `decode` drops the space after each special token."""
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the capital is the city", "the city of the sea"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    slow = LlamaTokenizer(str(tmp_path / "tokenizer.model"), legacy=True)
    ids = prompts.tokenize("the city . 🦜 <s>the\n", slow)

    shown = TokenText(slow).strings(ids)

    assert joined(shown) == "<s> the city . 🦜 <s> the\n"
    assert [TokenText(slow).id_of(token) for token in shown] == ids


def test_importing_loads_neither_transformers_nor_torch() -> None:
    assert not imported_by("from prompting import token_text", "torch", "transformers")
