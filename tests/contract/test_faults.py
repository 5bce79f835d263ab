"""Sentences about wrong requests: in the words of JSON, and readable as they stand."""

import re
from typing import Any

import pytest

from errors import InvalidInput
from schemas import parse_request

SITE = {"layer": 2, "index": 157, "position": 4}
INTERVENE = {
    "action": "intervene",
    "prompt": "a",
    "groups": {'say " basket" (L2)': [SITE], "it's": [SITE]},
    "experiments": [[]],
}


def sentence_about(**fields: Any) -> str:
    with pytest.raises(InvalidInput) as refused:
        parse_request({**INTERVENE, **fields})
    return str(refused.value)


def test_the_known_groups_are_listed_as_they_are_written() -> None:
    said = sentence_about(experiments=[[{"group": "zzz", "scale": 0}]])
    assert said.endswith("""; known: 'say " basket" (L2)', "it's\"""")


def test_of_many_groups_the_first_are_listed_and_the_rest_counted() -> None:
    groups = {f"group {n}": [SITE] for n in range(20)}
    said = sentence_about(groups=groups, experiments=[[{"group": "zzz", "scale": 0}]])
    assert said.endswith("'group 7' and 12 more")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"groups": []}, "groups: input should be an object, got a list of 0"),
        ({"groups": {"a": ["b"]}}, "groups.a[0]: input should be an object, got 'b'"),
        ({"groups": {}}, "groups: object should have at least 1 item, got an object with 0 fields"),
        ({"groups": {"a": []}}, "groups.a: list should have at least 1 item, got a list of 0"),
        ({"groups": {"": [SITE]}}, "groups: a name should have at least 1 character, got ''"),
        ({"experiments": [["a*0"]]}, "experiments[0][0]: input should be an object, got 'a*0'"),
        ({"experiments": {}}, "experiments: input should be a list, got an object with 0 fields"),
        (
            {"experiments": [[{"grup": "it's", "scale": 0}]]},
            "experiments[0][0].grup is no field of experiments; did you mean group?",
        ),
    ],
)
def test_a_value_of_another_kind_is_refused_in_the_words_of_json(
    fields: dict[str, Any], said: str
) -> None:
    sentence = sentence_about(**fields)
    assert said in sentence
    assert not re.search("dictionary|instance|validation|key|action", sentence)
