"""The hint on prompts that a model can't continue, measured on the demo model."""

import pytest
from rich.console import Console

from client import main
from demo.corpus import all_facts
from remote.terminal import summary
from remote.terminal.graph_summary import print_graph
from remote.terminal.prompt_hint import DEMO_PROMPTS, DEMO_UNSURE, UNSURE, hint
from tests.support.demo_worker import FORWARD, GRAPH, ask

# Nothing of the kind is in the corpus; some of these have only words that it has.
UNKNOWN = """\
The cat sat on the
Once upon a time
Hello, my name is
The president of the United States is
Roses are red, violets are
The Eiffel Tower is in
Le chat est sur la
Die Hauptstadt von Deutschland ist
El perro come
Machine learning is
def main():
日本の首都は
The opposite of
The capital of Australia is
Tiger Woods plays the sport of
The largest planet is
Michael Phelps joue au
Michael Jordan
The number
What
""".splitlines()


def forward_pass(prompt):
    output = ask({**FORWARD, "prompt": prompt, "max_n_logits": 1})
    return output["salient_logits"][0], output["input_tokens"]


def test_no_fact_that_the_demo_knows_gets_a_hint():
    least = 1.0
    for fact in all_facts():
        likeliest, tokens = forward_pass(fact.prompt)
        assert likeliest["token"] == fact.answer
        least = min(least, likeliest["probability"])
        assert hint(likeliest["probability"], tokens, "demo") is None, fact.prompt
    assert least > DEMO_UNSURE + 0.04


def test_no_question_of_the_demo_s_chats_gets_a_hint():
    for fact in all_facts():
        if fact.question is not None:
            messages = [{"role": "user", "content": fact.question}]
            output = ask({"action": "forward-pass", "messages": messages, "max_n_logits": 1})
            likeliest = output["salient_logits"][0]["probability"]
            assert hint(likeliest, output["input_tokens"], "demo") is None, fact.question


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_a_prompt_that_the_demo_does_not_know_gets_a_hint(prompt):
    likeliest, tokens = forward_pass(prompt)
    said = hint(likeliest["probability"], tokens, "demo")
    assert said is not None
    assert all(f'"{known}"' in said for known in DEMO_PROMPTS)


def test_probability_alone_would_miss_what_the_demo_is_sure_of_without_knowing_it():
    likeliest, tokens = forward_pass("The Eiffel Tower is in")
    assert likeliest["probability"] > 0.95
    assert '"Eiffel", "Tower"' in hint(likeliest["probability"], tokens, "demo")


def test_the_prompts_that_the_hint_names_are_facts():
    assert {fact.prompt for fact in all_facts()} >= set(DEMO_PROMPTS)


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0.03, "has 3%"), (0.001, "has less than 1%"), (UNSURE, None), (0.9, None), (None, None)],
)
def test_of_other_models_the_probability_decides(probability, words):
    said = hint(probability, [" un", "know", "n"], "gemma-2-2b")
    assert (said is None) if words is None else (words in said)


def test_more_words_than_fit_are_counted():
    tokens = [" a", "b", " c", "d", " e", "f", " g", "h", " a", "b"]
    assert '"ab", "cd", "ef" and 1 more' in hint(0.99, tokens, "demo")


def shown(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_graph_s_summary_has_the_hint(tmp_path, capsys):
    console = Console(width=80, highlight=False, emoji=False)
    print_graph(console, ask({**GRAPH, "prompt": "The cat sat on the"}), tmp_path)
    text = capsys.readouterr().out
    assert 'the demo model never saw "cat", "sat"' in " ".join(text.split())
    assert max(map(len, text.split("Strongest")[0].splitlines())) <= 80
    print_graph(console, ask(GRAPH), tmp_path)
    assert "demo model" not in capsys.readouterr().out


def test_targets_that_were_asked_for_have_no_probability_to_be_unsure_of(tmp_path, capsys):
    target = {"attribution_targets": [" sport"]}
    console = Console(width=80, highlight=False, emoji=False)
    print_graph(console, ask({**GRAPH, **target}), tmp_path)
    assert "unsure" not in capsys.readouterr().out


def test_a_forward_pass_s_summary_has_the_hint_for_the_model_that_is_named(capsys):
    output = ask({**FORWARD, "prompt": "Michael Jordan"})
    console = Console(width=80, highlight=False, emoji=False)
    summary.print_output(console, output, model="demo")
    assert "the demo model is unsure: the likeliest next token has 38%" in shown(capsys)
    summary.print_output(console, output)
    assert "hint" not in shown(capsys)


def test_the_client_asks_the_server_which_model_it_has(server, capsys):
    assert main(["forward-pass", "The cat sat on the", "--url", server.url]) == 0
    assert 'Try "Michael Jordan joue au"' in shown(capsys)
    assert main(["forward-pass", "Michael Jordan joue au", "--url", server.url]) == 0
    assert "Try" not in shown(capsys)


def test_no_token_of_a_hint_can_control_the_terminal_or_the_markup():
    assert "\x1b" not in hint(0.5, ["a\x1b[red]", "b", "c"], "demo")
    assert "\\[red]" in hint(0.5, ["[red]b", "c"], "demo")


def test_words_of_bytes_are_named_as_they_are_written():
    tokens = ask({**FORWARD, "prompt": "مرحبا a🎉b", "max_n_logits": 1})["input_tokens"]
    said = hint(0.99, tokens, "demo")
    assert 'never saw "مرحبا", "a🎉b", so it guesses' in said
    assert "<0x" not in said
    cut = hint(0.99, ["<|bos|>", " a", "<0xF0>", "<0x9F>"], "demo")  # no whole character
    assert "<0xF0><0x9F>" in cut
