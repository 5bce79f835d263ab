"""The file of a batch: what becomes of each row, and what is said of one that can't be right."""

import json
import re

import pytest

from remote.batch.prompt_files import read_prompts
from remote.errors import WrongFile
from schemas import parse_request


@pytest.fixture
def read(tmp_path):
    def read_text(name, text, defaults=None, keep=()):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_prompts(path, defaults or {}, keep)

    return read_text


def test_a_csv_s_columns_become_fields_of_their_types_and_empty_cells_the_defaults(read):
    text = (
        "\ufeffprompt,max_n_logits,compress,node_threshold,attribution_targets,user_id\r\n"
        '"a, ""b""\nc",3,TRUE,0.5,"["" x"", "" y""]",17\r\n'
        "d,,,,,\r\n"
    )
    first, second = read("p.csv", text, {"max_n_logits": 7, "batch_size": 2})
    assert first.line == 3
    assert {**first.job, "slug_identifier": "-"} == {
        "action": "generate-graph",
        "slug_identifier": "-",
        "prompt": 'a, "b"\nc',
        "max_n_logits": 3,
        "compress": True,
        "node_threshold": 0.5,
        "attribution_targets": [" x", " y"],
        "user_id": "17",
        "batch_size": 2,
    }
    assert second.job["max_n_logits"] == 7
    for row in (first, second):
        parse_request(row.job)
        assert row.job["slug_identifier"] == row.name


def test_json_lines_and_lines_of_text_are_rows_too(read):
    messages = [{"role": "user", "content": "Hi"}]
    lines = [{"prompt": "a", "batch_size": 3, "user_id": None}, {"messages": messages}]
    rows = read("p.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    assert [row.line for row in rows] == [1, 3]
    assert rows[0].job["batch_size"] == 3
    assert rows[1].job["messages"] == messages
    assert json.loads(rows[1].prompt) == messages
    rows = read("p.TXT", "one \r\n\n  two\u2028three\n")
    assert [row.job["prompt"] for row in rows] == ["one ", "  two\u2028three"]


def test_a_row_s_name_follows_its_job_and_not_its_place_or_where_its_graph_is_put(read):
    plain, again, other = read("p.csv", "prompt,batch_size\na,\nb,\na,2\n")[0:3]
    moved, uploaded = read(
        "p.csv", "prompt,signed_url,download_url\na,,\na,http://s/k?1,http://s/k\n"
    )
    assert plain.name == moved.name == uploaded.name
    assert len({plain.name, again.name, other.name}) == 3
    assert uploaded.download_url == "http://s/k"
    assert "download_url" not in uploaded.job


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "\x1b[2J", "a" * 5000, "日本", "CON", ".."])
def test_a_row_s_name_is_a_safe_name_of_a_file_and_of_a_graph(read, prompt):
    [row] = read("p.jsonl", json.dumps({"prompt": prompt}))
    assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{10}", row.name)
    assert len(row.name) < 90


def test_columns_are_kept_where_that_is_asked_for(read):
    [row] = read("p.csv", "prompt,athlete\na,Jordan\n", keep=["athlete", "absent"])
    assert row.kept == {"athlete": "Jordan", "absent": ""}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "prompt,athlete\na,b\n", "line 2: athlete is no field of this action"),
        ("p.csv", "prompt,batch_sise\na,2\n", "did you mean batch_size?"),
        ("p.csv", "prompt,batch_size\na,x\n", "line 2: batch_size is 'x', which is not a number"),
        ("p.csv", "prompt,compress\na,on\n", "compress is 'on', which is not true or false"),
        ("p.csv", "prompt,messages\n,[1\n", "messages is '[1', which is not JSON"),
        ("p.csv", "prompt,batch_size\na,0\n", "line 2: batch_size: "),
        ("p.csv", "prompt,deadline\na,5\n", "deadline can't be set in a batch"),
        ("p.csv", "prompt,download_url\na,http://x\n", "download_url is given without signed_url"),
        ("p.csv", "prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        ("p.csv", "prompt\na,b\n", "line 2: more cells than columns"),
        ("p.csv", "text\na\n", "its first line has to name the columns"),
        ("p.csv", "", "its first line has to name the columns"),
        ("p.csv", "prompt\n", "there is no prompt in it"),
        ("p.csv", 'prompt\n"a\n', "unexpected end of data"),
        ("p.csv", b"prompt\n\xff\n", "it is not UTF-8 (byte 7)"),
        ("p.jsonl", '{"prompt": "a",}\n', "line 1 is no JSON: column 16: a comma stands before"),
        ("p.jsonl", '{"prompt": "a"}\n{\n', "line 2 is no JSON: column 2: the text ends here"),
        ("p.jsonl", '{\n"prompt": "a"}\n', "each line is an object of its own"),
        ("p.jsonl", '[{"prompt": "a"}]\n', "write one a line, without a list around them, such as"),
        ("p.json", "[]", "of .json make a .jsonl, an object a line"),
        ("p.csv", "promt\na\n", "one of them is prompt; rename 'promt' to prompt"),
        ("p.csv", "prompt;slug_identifier\na;b\n", "columns are separated by commas"),
        ("p.csv", "messages\n[{]\n", "messages is '[{]', which is not JSON: line 1, column 3: "),
        ("p.jsonl", "{\n", "line 1 is no JSON"),
        ("p.jsonl", "3\n", "line 1 is no object"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt: "),
        ("p.jsonl", "{}\n", "line 1: give exactly one of prompt and messages"),
        ("p.jsonl", '{"prompt": "a", "' + "x" * 9999 + '": 1}', "is no field of this action"),
        ("p.txt", "\n", "there is no prompt in it"),
        ("p.xlsx", "", "name a file of prompts that ends with .csv, .jsonl, .txt"),
    ],
)  # fmt: skip
def test_what_can_not_be_right_is_said_with_its_line(read, name, text, words):
    with pytest.raises(WrongFile) as caught:
        read(name, text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_of_many_bad_rows_the_first_are_named_and_the_others_counted(read):
    with pytest.raises(WrongFile, match=r"line 2: .*line 4: .*; and 17 more lines"):
        read("p.csv", "prompt,batch_size\n" + "a,0\n" * 20)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WrongFile, match=r"none\.csv: No such file"):
        read_prompts(tmp_path / "none.csv", {})
