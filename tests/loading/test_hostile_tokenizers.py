"""A tokenizer.json can ask for any time or memory: a start names it, and a job is answered."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from errors import Internal
from loading import WeightsError
from loading.model_tokenizer import read_tokenizer
from prompting import prompts
from prompting.tokenizer_parts import QUICK_PATTERNS, state_of, unknown_parts
from prompting.tokenizer_process import Bounds, TokenizerTooCostly
from tests.support.demo_worker import FORWARD, ask
from tests.support.tiny_tokenizers import BASE_FAMILIES, CHAT_FAMILIES

SMALL = Bounds(cpu_s=1.0, memory_bytes=1 << 30)
ENDLESS = "(a+)+$"
# Quick for each text but those that have this.
RARE = "zq" + ENDLESS
COSTLY_TEXT = "zq" + "a" * 60 + "b"
LETTERS = {chr(n): n for n in range(32, 127)}


def backend(**parts: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(LETTERS, []))
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def with_added(content: str) -> Tokenizer:
    made = backend(normalizer=normalizers.Replace(Regex(ENDLESS), "x"))
    made.add_tokens([AddedToken(content, normalized=True)])
    return made


def write(directory: Path, made: Tokenizer) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="~").save_pretrained(directory)
    return directory / "tokenizer.json"


HOSTILE = {
    "pre_tokenizer.pattern.Regex": lambda: backend(pre_tokenizer=split(ENDLESS)),
    "pre_tokenizer.pretokenizers[1].pattern.Regex": lambda: backend(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), split(ENDLESS)])
    ),
    "normalizer.pattern.Regex": lambda: backend(
        normalizer=normalizers.Replace(Regex(ENDLESS), "x")
    ),
    "normalizer.normalizers[0].content": lambda: backend(
        normalizer=normalizers.Sequence([normalizers.Replace("a", "aa")] * 60)
    ),
    "model.type": lambda: Tokenizer(
        models.WordPiece(
            {"?": 0, "a": 1, "##a": 2, "~": 3}, unk_token="?", max_input_chars_per_word=10**9
        )
    ),
}
# Quick when a text is tokenised: the worker writes the text that they are slow with.
DECODERS = {
    "decoder.pattern.Regex": lambda: decoders.Replace(Regex(ENDLESS), "x"),
    "decoder.decoders[1].pattern.Regex": lambda: decoders.Sequence(
        [decoders.Fuse(), decoders.Replace(Regex(RARE), "x")]
    ),
    "decoder.decoders[0].content": lambda: decoders.Sequence([decoders.Replace("a", "aa")] * 60),
}


@pytest.mark.parametrize("field", [name for name in HOSTILE if name != "model.type"])
def test_a_start_names_the_file_and_the_field_that_take_too_much(field, tmp_path):
    file = write(tmp_path, HOSTILE[field]())
    with pytest.raises(WeightsError) as caught:
        read_tokenizer(tmp_path, SMALL)
    assert f"{file} is not served: with its {field}" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_start_ends_where_reading_the_file_is_what_takes_too_much(tmp_path):
    file = write(tmp_path, backend())
    content = json.loads(file.read_text())
    content["normalizer"] = json.loads(
        normalizers.Sequence([normalizers.Replace("a", "aa")] * 60).__getstate__()
    )
    content["added_tokens"][0] |= {"content": "aaaa", "normalized": True}
    content["model"]["vocab"]["aaaa"] = content["added_tokens"][0]["id"]
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="reading it, or a text of"):
        read_tokenizer(tmp_path, SMALL)


@pytest.mark.parametrize("field", DECODERS)
def test_a_decoder_that_can_take_too_much_is_refused_at_the_start(field, tmp_path):
    file = write(tmp_path, backend(decoder=DECODERS[field]()))
    with pytest.raises(WeightsError) as caught:
        read_tokenizer(tmp_path, SMALL)
    assert f"{file} is not served: {field}" in str(caught.value)


@pytest.mark.parametrize("layout", ["the model first", "letters as numbers", "spaces"])
def test_the_field_is_found_wherever_it_stands_in_the_file(layout, tmp_path):
    file = write(tmp_path, backend(pre_tokenizer=split(ENDLESS)))
    content = json.loads(file.read_text())
    text = json.dumps({"model": content.pop("model"), **content})
    if layout == "letters as numbers":
        text = text.replace("pre_tokenizer", r"pre_t\u006fkenizer")
    if layout == "spaces":
        text = text.replace('"model":', '"model"\n:')
    file.write_text(text)
    with pytest.raises(WeightsError, match=r"pre_tokenizer\.pattern\.Regex"):
        read_tokenizer(tmp_path, SMALL)


def test_a_file_beside_it_that_transformers_may_read_in_its_place_is_checked_too(tmp_path):
    write(tmp_path, backend(pre_tokenizer=split(ENDLESS))).rename(tmp_path / "tokenizer.4.0.0.json")
    write(tmp_path, backend())
    with pytest.raises(WeightsError, match=r"tokenizer\.4\.0\.0\.json is not served"):
        read_tokenizer(tmp_path, SMALL)


def test_a_text_that_takes_too_much_is_refused_and_the_next_is_tokenised(tmp_path):
    write(tmp_path, backend(pre_tokenizer=split(RARE)))
    tokenizer = read_tokenizer(tmp_path, SMALL)
    for way in (
        lambda: tokenizer.encode(COSTLY_TEXT),
        lambda: tokenizer([COSTLY_TEXT, "b"]),
        lambda: tokenizer.tokenize(COSTLY_TEXT),
        lambda: tokenizer("b", COSTLY_TEXT),
        lambda: prompts.prepare(COSTLY_TEXT, tokenizer, token_limit=100),
    ):
        with pytest.raises(TokenizerTooCostly, match="tokenizer takes more than 1 s or 1024 MiB"):
            way()
        assert tokenizer.encode("ab") == [LETTERS["a"], LETTERS["b"]]


def test_words_of_any_length_end_too(tmp_path):
    write(tmp_path, HOSTILE["model.type"]())
    # Those of a worker, since texts of 1,000 characters take a good part of a second.
    tokenizer = read_tokenizer(tmp_path)
    with pytest.raises(TokenizerTooCostly):
        tokenizer.encode("a" * 16_000)
    assert tokenizer.encode("a") == [1]


def test_a_tokenizer_of_unknown_parts_is_as_it_is_without_the_check(tmp_path):
    write(tmp_path, backend(pre_tokenizer=split(r"[a-z]+|\d(?=\d)")))
    ours, expected = read_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert type(ours) is not type(expected)
    for text in ("ab 12 c", "", "~", "a\ud83d\ude00"[:2]):
        try:
            ids = expected.encode(text)
        except Exception as error:
            with pytest.raises((type(error), Internal)):
                ours.encode(text)
        else:
            assert ours.encode(text) == ids
            assert ours.decode(ids) == expected.decode(ids)
    assert ours.__class__.__name__ == expected.__class__.__name__


@pytest.mark.parametrize("pattern", QUICK_PATTERNS)
def test_a_published_pattern_needs_no_process(pattern, tmp_path):
    write(tmp_path, backend(pre_tokenizer=split(QUICK_PATTERNS[pattern])))
    tokenizer = read_tokenizer(tmp_path)
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert tokenizer.encode("ab") == [LETTERS["a"], LETTERS["b"]]


@pytest.mark.parametrize("family", [*CHAT_FAMILIES, *BASE_FAMILIES])
def test_the_families_need_no_process(family):
    made = (CHAT_FAMILIES | BASE_FAMILIES)[family]()
    assert unknown_parts(state_of(made.backend_tokenizer)) == []


def test_the_patterns_are_those_that_are_published():
    contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    assert QUICK_PATTERNS["Llama 3"] == (
        contraction + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    assert QUICK_PATTERNS["GPT-OSS"] == (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + contraction
        + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + contraction
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def test_a_panic_of_a_library_fails_its_job_alone(monkeypatch):
    hostile = backend(pre_tokenizer=split(ENDLESS))
    with monkeypatch.context() as patch:
        patch.setattr(prompts, "tokenize", lambda *_, **__: hostile.encode(COSTLY_TEXT).ids)
        with pytest.raises(Internal, match="PanicException"):
            ask(FORWARD)
    assert ask(FORWARD)["input_tokens"]
