"""What is said of JSON that is none: where the fault is and what was meant."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.json_text import NotJson, is_file_name, read_json

FAULTS = [
    ('{"a": 1,}', "line 1, column 9: a comma stands before the }: remove it"),
    ("[1,\n2,\n]", "a comma stands before the ]: remove it"),
    ('{"a":1,,"b":2}', "line 1, column 8: there is a comma too many"),
    ("{'a': 1}", "line 1, column 2: JSON takes double quotes"),
    ("{\"a\": 'x'}", "line 1, column 7: JSON takes double quotes"),
    ("{“a”: 1}", "column 2: JSON takes straight double quotes"),
    ('{"a": 1', "column 8: the text ends here, and } is missing"),
    ('{"a": [1, {"b": "}"}', "the text ends here, and ]} is missing"),
    ('{"a":', "a value is missing, and then }"),
    ('{"a": "x', 'column 7: the string that begins here has no end: a " is missing'),
    ('{"a": "x\\"}', 'a " is missing'),
    ('{"a": True}', "column 7: write true instead of True"),
    ('{"a": None}', "write null instead of None"),
    ("{a: 1}", 'names take double quotes: "a"; in a shell, put single quotes around'),
    ('{"a": hello}', "text takes double quotes around it"),
    ('{"a": NaN}', "NaN is no number of JSON"),
    ('{"a" 1}', "a colon is missing"),
    ('{"a": 1 "b": 2}', "a comma or the closing bracket is missing here"),
    ('{"a": "x "y" z"}', 'a " within a text is written \\"'),
    ('{"a": "x\ny"}', "can't hold a line break"),
    ('{"a": "\\d"}', "a backslash in a text is written twice"),
    ('{"a": 1}}', "column 9: there is a } too many"),
    ('{"a": 1}\n{"b": 2}', "line 2, column 1: the JSON has ended before this"),
    ('{"a": }', "a value is missing before the }"),
    ('{"a": 1, // x\n"b": 2}', "JSON has no comments"),
    ('{"a": .5}', "a number begins with a digit"),
    ("", "it is empty"),
    (" \n", "it is empty"),
    ("[" * 100_000, "it is nested too deeply"),
    ("9" * 5_000 + ",", "line 1, column 5001: "),
    ("\ufeff{}", "a byte order mark stands before the JSON"),
    (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    ('{"a": "\\ud800"}', "surrogate"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_a_fault_is_placed_and_what_was_meant_is_said(text, said):
    with pytest.raises(NotJson) as refused:
        read_json(text)
    assert said in str(refused.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(values)
def test_json_is_read_as_it_is(value):
    assert read_json(json.dumps(value)) == value
    assert read_json(orjson.dumps(value)) == value


@given(values, st.data())
def test_damaged_json_is_read_or_explained_and_never_ends_otherwise(value, data):
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(text)))
    inserted = data.draw(st.sampled_from(["", *"{}[],:\"'\\ntN-.", "//", "NaN", "\ufeff"]))
    damaged = text[:at] + inserted + text[at + data.draw(st.integers(0, 2)) :]
    try:
        read_json(damaged)
    except NotJson as error:
        assert len(str(error)) < 200


def test_no_text_of_the_json_is_repeated():
    for damage in ("", "}", ",", "\\"):
        with pytest.raises(NotJson) as refused:
            read_json('{"prompt": "planted secret", "signed_url": "http://planted"' + damage + "'")
        assert "planted" not in str(refused.value)


def test_a_long_text_with_an_open_string_is_looked_at_once():
    text = '{"a": "' + '\\"' * 900_000
    with pytest.raises(NotJson, match="has no end"):
        read_json(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("job.json", True), ("@a/b.json", True), ("{}", False), ("", False), ("x" * 9999, False),
     ("a\0b", False), ("hello", False), ('{"a": "b.json"}', False)],
)  # fmt: skip
def test_a_file_s_name_is_told_from_json(text, expected):
    assert is_file_name(text) is expected


def test_a_file_that_is_there_is_a_file_s_name_whatever_its_ending(tmp_path):
    (tmp_path / "job").write_text("{}")
    assert is_file_name(str(tmp_path / "job"))
