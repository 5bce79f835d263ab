"""The parts of a steer with `stream: true`: each generated token as it comes."""

import threading

import pytest

from actions.answer import answer
from errors import Cancelled, InvalidInput
from model_loader import get_model
from prompting.token_text import joined
from tests.support.demo_worker import PROMPT, ask, demo_settings

AT = {"token_active_position": 4, "steer_position": 4}
FEATURES = [{"layer": 2, "index": 157, **AT, "ablate": True}]
AT_BOS = [{**FEATURES[0], "steer_position": 0}]
STEER = {"prompt": PROMPT, "features": FEATURES, "n_tokens": 6, "temperature": 5.0, "seed": 4}


def steer(named_by="action", cancelled=None, on_part=None, **fields):
    """The parts, and the output."""
    parts = []
    response = answer(
        {named_by: "steer", **STEER, "stream": True, **fields},
        get_model(demo_settings()),
        demo_settings(),
        cancelled,
        on_part=on_part or parts.append,
    )
    return [part.model_dump(mode="json") for part in parts], response.model_dump(mode="json")


def of(side, parts):
    return [part for part in parts if part["side"] == side]


@pytest.mark.parametrize("named_by", ["action", "request_type"])
def test_the_parts_of_each_side_are_the_entries_of_its_list_from_the_prompt_on(named_by):
    parts, output = steer(named_by)
    for side in ("default", "steered"):
        entries = output[f"{side.upper()}_LOGITS_BY_TOKEN"][4:]
        assert len(entries) > 1
        tops = [
            entry["top_logits"] if named_by == "request_type" else entry[1] for entry in entries
        ]
        tokens = [entry["token"] if named_by == "request_type" else entry[0] for entry in entries]
        assert [part["token"] for part in of(side, parts)] == tokens
        assert [part["top_logits"] for part in of(side, parts)] == tops
        assert [part["position"] for part in of(side, parts)] == list(range(5, 5 + len(entries)))
        text = PROMPT + joined(part["token"] for part in of(side, parts))
        assert text == output[f"{side.upper()}_GENERATION"]


def test_both_sides_come_together_and_not_one_after_the_other():
    parts, _ = steer()
    assert [part["side"] for part in parts[:4]] == ["default", "steered"] * 2
    positions = [part["position"] for part in parts]
    assert positions == sorted(positions)


def test_the_output_is_the_same_as_without_a_stream():
    _, output = steer()
    assert output == ask({"action": "steer", **STEER})


def test_without_stream_or_someone_who_listens_there_are_no_parts():
    assert steer(stream=False)[0] == []
    assert ask({"action": "steer", **STEER, "stream": True}) == ask({"action": "steer", **STEER})


def test_a_steer_of_the_steered_side_alone_has_parts_of_that_side_alone():
    parts, output = steer(steered_output_only=True)
    assert {part["side"] for part in parts} == {"steered"}
    assert PROMPT + joined(part["token"] for part in parts) == output["STEERED_GENERATION"]


def test_where_nothing_is_steered_both_sides_still_have_their_parts():
    parts, output = steer(features=AT_BOS)
    default, steered = ([{**p, "side": ""} for p in of(s, parts)] for s in ("default", "steered"))
    assert default == steered
    assert PROMPT + joined(part["token"] for part in default) == output["DEFAULT_GENERATION"]


@pytest.mark.parametrize(("top_k", "in_a_part"), [(0, 0), (3, 3), (50, 10)])
def test_a_part_has_at_most_ten_predictions(top_k, in_a_part):
    parts, output = steer(top_k=top_k)
    assert {len(part["top_logits"]) for part in parts} == {in_a_part}
    assert len(output["STEERED_LOGITS_BY_TOKEN"][-1][1]) == top_k
    assert parts[-1]["top_logits"] == output["STEERED_LOGITS_BY_TOKEN"][-1][1][:10]


def test_a_steer_stopped_in_its_stream_sends_no_more_parts():
    cancelled, parts = threading.Event(), []

    def stop_at_the_third(part):
        parts.append(part)
        if len(parts) == 3:
            cancelled.set()

    with pytest.raises(Cancelled):
        steer(cancelled=cancelled, on_part=stop_at_the_third)
    assert len(parts) == 4  # the pass that was under way has two sides


def test_stream_must_be_true_or_false():
    with pytest.raises(InvalidInput, match=r"stream: .*, got 'yes'"):
        steer(stream="yes")
