"""A chat template is a program of the weights': what it may take is bounded, and it sees little."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings

from errors import Internal, InvalidInput
from prompting import chat_prompt, chat_template, prompts, template_grammar, template_process
from prompting.template_process import (
    Bounds,
    TemplateProcess,
    TemplateRefusal,
    TemplateTooCostly,
)
from tests.support.chat_messages import user
from tests.support.conversations import CONVERSATIONS, TOKENIZERS, Message
from tests.support.tiny_tokenizers import CHAT_FAMILIES

SMALL = Bounds(cpu_s=0.5, memory_bytes=1 << 28, most_characters=200_000)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LONG = "{% set text = 'a' * 99999 %}{% for a in range(9) %}{{ text }}{% endfor %}"
# What makes them costly is in C code or in Python code, when compiled or when rendered.
COSTLY = {
    "a loop": LOOP,
    "a loop that writes": LOOP.replace("{% endfor %}", "aaaaaaaaaa{% endfor %}", 1),
    "endless recursion through loops": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}"
    "{% macro g(n) %}{% if n %}{{ g(n - 1) }}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(60) }}",
    "a product of text": "{{ messages[0].content * 2000000000 }}",
    "a product that the compiler computes": "{{ 'a' * 2000000000 }}",
    "a format": "{{ '%2000000000d' % 1 }}",
    "a method": "{{ messages[0].content.ljust(2000000000) }}",
    "a filter": "{{ messages[0].content | center(2000000000) }}",
    "text that doubles": "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(40) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "a list that doubles": "{% set n = namespace(t=[1]) %}{% for i in range(40) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}",
    "indents": "{{ [[1]] | tojson(indent=2000000000) }}",
    "a power": "{{ 7 ** 999999999 }}",
    "a long text": LONG,
}


@pytest.fixture
def process():
    process = TemplateProcess(SMALL)
    yield process
    process.close()


@pytest.fixture
def bounded(process, monkeypatch):
    """Gives jobs a process of small bounds, and a tokenizer of a template."""
    monkeypatch.setattr(chat_template, "template_process", lambda: process)

    def tokenizer(template):
        made = CHAT_FAMILIES["gemma2"]()
        made.chat_template = template
        return made

    return tokenizer


@pytest.mark.parametrize("template", COSTLY.values(), ids=COSTLY)
def test_a_template_that_takes_too_much_is_ended_and_the_next_text_is_rendered(process, template):
    variables = {"messages": [user("hi")]}
    with pytest.raises((TemplateTooCostly, TemplateRefusal)) as caught:
        process.render(template, variables, None)
    if isinstance(caught.value, TemplateTooCostly):
        assert "the model's chat template" in caught.value.sentence
    assert process.render("{{ messages[0].content }}", variables, None) == "hi"


@pytest.mark.parametrize("name", ["a loop", "a product of text", "a list that doubles"])
def test_the_error_of_a_template_that_takes_too_much_says_so(process, name):
    with pytest.raises(TemplateTooCostly, match=r"takes more than .*; send prompt instead"):
        process.render(COSTLY[name], {"messages": [user("hi")]}, None)


@pytest.mark.parametrize("template", [LOOP, LONG], ids=["a loop", "a long text"])
def test_each_way_of_a_job_to_the_template_ends_with_the_error(bounded, template):
    costly = bounded(template)
    ways = (
        lambda: chat_template.render_messages([user("hi")], costly),
        lambda: prompts.prepare([user("hi")], costly, token_limit=10),
        lambda: prompts.tokenize("<start_of_turn>user", costly),
        lambda: template_grammar.learn(costly),
        lambda: chat_prompt.parse("hi", costly),
    )
    for way in ways:
        with pytest.raises(TemplateTooCostly):
            way()


def test_a_template_that_is_costly_for_some_messages_answers_the_others(bounded):
    tokenizer = bounded("{% if 'loop' in messages[0].content %}" + LOOP + "{% endif %}ok")
    with pytest.raises(InvalidInput, match=r"takes more than 0\.5 s"):
        chat_template.apply_template([user("loop")], tokenizer)
    assert chat_template.apply_template([user("hi")], tokenizer) == "ok"


def test_what_a_template_writes_around_short_messages_is_short(bounded):
    tokenizer = bounded("{{ 'a' * 99999 }}bb{{ messages[0].content }}")
    with pytest.raises(
        TemplateTooCostly, match=r"writes 1000\d\d characters around short messages"
    ):
        template_grammar.learn(tokenizer)


def test_a_refusal_s_words_are_cut(bounded):
    tokenizer = bounded("{{ raise_exception('x' * 90000) }}")
    with pytest.raises(InvalidInput) as caught:
        chat_template.apply_template([user("hi")], tokenizer)
    assert len(str(caught.value)) < 1000


@settings(max_examples=100, deadline=None)
@given(CONVERSATIONS)
def test_texts_are_those_of_transformers(conversation: tuple[str, list[Message]]):
    family, messages = conversation
    tokenizer = TOKENIZERS[family]
    try:
        expected = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        with pytest.raises(InvalidInput):
            chat_template.apply_template(messages, tokenizer)
    else:
        assert chat_template.apply_template(messages, tokenizer) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{%- generation -%} {{ messages[0].content }} {% endgeneration %}\n{{ bos_token }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}{% endfor %}",
        "{{ {'é': [1, '<b>'], 'a': none} | tojson(indent=2) }}",
        "  {% if true %}\n  x\n  {% endif %}\n",
        "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}",
        "{{ strftime_now('%Y') }} {{ strftime_now is defined }} {{ additional_special_tokens }}",
        "{% macro f(x) %}{{ x }}{{ strftime_now('%Y') }}{{ bos_token }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_a_template_finds_what_transformers_gives_it(template):
    tokenizer = CHAT_FAMILIES["llama3"]()
    tokenizer.chat_template = template
    messages = [user("a\ud800\udc00\U00010000\u2028<b>"), user("b")]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat_template.apply_template(messages, tokenizer) == expected


def test_templates_have_nothing_of_the_worker_s_environment(process, monkeypatch):
    monkeypatch.setenv("SECRET", "5ec4e7")
    assert process.render("{{ 1 }}", {}, None) == "1"
    environment = Path(f"/proc/{process._process.pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc")
    assert b"5ec4e7" not in environment.read_bytes()


def test_texts_that_are_asked_for_at_once_are_not_mixed_up(process):
    texts: dict[int, list[str]] = {}

    def ask(number):
        texts[number] = [process.render("{{ x }}", {"x": number}, None) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: [str(number)] * 20 for number in range(8)}


def test_a_process_that_was_killed_is_started_anew(process):
    assert process.render("a", {}, None) == "a"
    process._process.kill()
    process._process.wait()
    assert process.render("b", {}, None) == "b"


def test_a_process_that_can_not_run_is_a_fault_of_the_worker_s(process, monkeypatch, tmp_path):
    monkeypatch.setattr(template_process, "_PROGRAM", tmp_path / "none.py")
    with pytest.raises(Internal, match="must be able to import jinja2"):
        process.render("a", {}, None)
