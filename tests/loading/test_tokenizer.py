"""A tokenizer that transformers 5 saved is the one that it was made of."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import model_loader
from loading import WeightsError
from loading.model_tokenizer import read_tokenizer
from loading.registry import DEMO
from tests.support.chat_messages import assistant, user
from tests.support.demo_worker import FORWARD, ask, demo_settings
from tests.support.tiny_tokenizers import BASE_FAMILIES, CHAT_FAMILIES

FAMILIES = {**CHAT_FAMILIES, **BASE_FAMILIES}
TEXTS = [
    "The capital of France is Paris.\n\n  Two",
    " a . b ,c",
    "<|im_start|>user\nHi<|im_end|><think>",
    "<start_of_turn>user\nHi<end_of_turn>",
    "é🙂",
]


def rewrite(directory: Path, **changes: Any) -> None:
    """Have a saved tokenizer's files say what transformers 5 writes."""
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("added_tokens_decoder", None)  # in tokenizer.json alone
    config.pop("extra_special_tokens", None)
    if extra := config.pop("additional_special_tokens", None):
        config["extra_special_tokens"] = extra
    config |= {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend"}
    config |= changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    (directory / "special_tokens_map.json").unlink(missing_ok=True)


def assert_same(ours: Any, expected: Any) -> None:
    for text in TEXTS:
        ids = expected(text).input_ids
        assert ours(text).input_ids == ids
        assert ours.decode(ids) == expected.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == expected.decode(
            ids, skip_special_tokens=True
        )
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    for name in (*names, "chat_template", "clean_up_tokenization_spaces"):
        assert getattr(ours, name) == getattr(expected, name), name
    assert sorted(ours.all_special_ids) == sorted(expected.all_special_ids)
    assert {i: str(t) for i, t in ours.added_tokens_decoder.items()} == {
        i: str(t) for i, t in expected.added_tokens_decoder.items()
    }


@pytest.mark.parametrize("backend", ["tokenizers", "absent"], ids=["with library", "without"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_tokenizes_and_renders_as_before(family: str, backend: str, tmp_path: Path) -> None:
    expected = FAMILIES[family]()
    expected.save_pretrained(tmp_path)
    rewrite(tmp_path, backend=backend)
    with pytest.raises((ValueError, AttributeError)):
        AutoTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path)
    assert_same(ours, expected)
    if expected.chat_template is not None:
        messages = [user("Hi"), assistant("It is")]
        assert ours.apply_chat_template(messages) == expected.apply_chat_template(messages)


def test_one_with_a_class_that_adds_bos_is_as_its_file_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = FAMILIES["gemma2"]()
    expected.backend_tokenizer.post_processor = FAMILIES["gpt2"]().backend_tokenizer.post_processor
    expected.save_pretrained(tmp_path)
    rewrite(tmp_path, tokenizer_class="GemmaTokenizer")
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        assert_same(read_tokenizer(tmp_path), expected)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.text == ""
    assert expected("a").input_ids[0] != expected.bos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_transformers_4_is_read_as_transformers_reads_it(
    family: str, tmp_path: Path
) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    ours, expected = read_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(expected)
    assert_same(ours, expected)


@pytest.mark.parametrize(
    ("changes", "removed"),
    [({}, "tokenizer.json"), ({"backend": "sentencepiece"}, None), ({"backend": "mistral"}, None)],
)
def test_one_that_is_not_in_tokenizer_json_is_refused_in_words_that_help(
    changes: dict[str, str], removed: str | None, tmp_path: Path
) -> None:
    FAMILIES["llama2"]().save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    if removed:
        (tmp_path / removed).unlink()
    with pytest.raises(WeightsError, match=r"transformers 5 .*save it anew as a fast tokenizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_the_worker_answers_with_it(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(FORWARD)
    demo = Path(DEMO.model)
    for file in demo.iterdir():
        if "token" in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
        else:
            (tmp_path / file.name).symlink_to(file)
    rewrite(tmp_path)
    settings = demo_settings(
        model_engine=engine,
        model_id=str(tmp_path),
        transcoder_set=DEMO.transcoder_set,
    )
    loaded = model_loader.load(settings)
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    ours = ask(FORWARD, settings)
    assert ours["input_tokens"] == expected["input_tokens"]
    assert [t["token"] for t in ours["salient_logits"]] == [
        t["token"] for t in expected["salient_logits"]
    ]
