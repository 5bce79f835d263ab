"""What a summary says of outputs that the demo model doesn't give."""

import pytest
from rich.console import Console

from remote.terminal import summary
from schemas import SteerResponse, UploadReceipt


@pytest.fixture
def said(capsys):
    """What printing an output writes."""

    def print_output(output):
        summary.print_output(Console(width=120, highlight=False, emoji=False), output)
        return capsys.readouterr().out

    return print_output


def steered(**changed):
    default = [("The", []), (" cat", [(" sat", 0.5), (" ran", 0.25)]), (" sat", [(".", 0.75)])]
    other = [("The", []), (" cat", [(" ran", 0.5), (" sat", 0.25)]), (" ran", [(".", 0.75)])]
    output = {
        "DEFAULT_GENERATION": "The cat sat",
        "STEERED_GENERATION": "The cat ran",
        "DEFAULT_LOGITS_BY_TOKEN": default,
        "STEERED_LOGITS_BY_TOKEN": other,
    }
    return SteerResponse.model_validate({**output, **changed}).model_dump(mode="json")


def as_objects(entries):
    return [
        {"token": token, "top_logits": [{"token": t, "prob": p} for t, p in top]}
        for token, top in entries
    ]


def test_steered_text_stands_beside_the_default_with_the_changed_predictions_below(said):
    lines = [line.split() for line in said(steered()).splitlines()]
    assert ["The", "cat", "sat", "The", "cat", "ran"] in lines
    changed = ['"', 'cat"', '"', 'sat"', "0.5000", '"', 'cat"', '"', 'ran"', "0.5000"]
    assert lines[-1] == changed


def test_a_continuation_is_bold_where_a_character_is_several_tokens_too(capsys):
    top = [(".", 0.75)]
    pieces = [(piece, top) for piece in (" cat", "<0xF0><0x9F>", "<0xA6>", "<0x9C>")]
    entries = [("The", []), *pieces]
    output = steered(DEFAULT_GENERATION="The cat🦜", DEFAULT_LOGITS_BY_TOKEN=entries)
    summary.print_output(Console(width=120, force_terminal=True, emoji=False), output)
    assert "The cat\x1b[1m🦜\x1b[0m" in capsys.readouterr().out


def test_both_forms_of_logits_say_the_same(said):
    output = steered()
    objects = {
        name: as_objects(value) if name.endswith("BY_TOKEN") else value
        for name, value in output.items()
    }
    assert said(objects) == said(output)


def test_a_steer_that_changes_nothing_says_so(said):
    entries = steered()["DEFAULT_LOGITS_BY_TOKEN"]
    assert "no prediction changed" in said(steered(STEERED_LOGITS_BY_TOKEN=entries))


def test_a_steer_without_a_default_or_without_predictions_shows_the_text_alone(said):
    alone = said(steered(DEFAULT_LOGITS_BY_TOKEN=[], DEFAULT_GENERATION="The cat"))
    assert "not generated" in alone
    bare = [("The", []), (" cat", []), (" sat", [])]
    none = said(steered(DEFAULT_LOGITS_BY_TOKEN=bare, STEERED_LOGITS_BY_TOKEN=bare))
    assert "The cat sat" in none
    assert "rediction" not in alone + none


def test_features_that_were_left_out_are_named(said):
    feature = {"layer": 2, "index": 146, "token_active_position": 0, "steer_position": 0}
    text = said(steered(ignored_features=[{**feature, "delta": 1.0}]))
    assert "layer 2, feature 146, position 0" in text


def test_text_from_elsewhere_can_not_control_the_terminal_or_the_markup(said):
    generation = "\x1b[2J\x07 [red]x[/red] :smile: \x9b"
    text = said(steered(DEFAULT_GENERATION=generation, DEFAULT_LOGITS_BY_TOKEN=[("a", [])]))
    assert "\\x1b[2J\\x07 [red]x[/red] :smile: \\x9b" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_a_receipt_says_where_the_graph_is_and_how_large(said):
    receipt = UploadReceipt(
        url="https://bucket/graph.json",
        bytes=12_345_678,
        sha256="ab" * 32,
        compressed=True,
        num_nodes=300,
        num_links=9000,
        num_tokens=5,
        timings_ms={"attribute": 50.2},
    )
    text = said(receipt.model_dump())
    assert "https://bucket/graph.json (12.3 MB, gzipped)" in text
    assert "attribute 50 ms" in text
