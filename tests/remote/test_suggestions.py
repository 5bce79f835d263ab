"""A wrong command line is answered with what was meant, and never with a traceback."""

import contextlib
import io
import shlex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client import main
from errors import WorkerError
from remote.arguments import _parser, parse
from schemas import parse_request


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("grpah hello", "'grpah' is none of the commands graph, steer, "),
        ("grpah hello", "; did you mean graph?"),
        ("generate-graph hello", "; did you mean graph?"),
        ("forward_pass hello", "; did you mean forward-pass?"),
        ("Steer hello", "; did you mean steer?"),
        ("'Michael Jordan joue au'", "the first argument is a command, such as graph; the prompt"),
        ("--verson", "there is no option --verson; did you mean --version?"),
        ("graph a --max-nlogits 3", "there is no option --max-nlogits; did you mean --max-n-log"),
        ("graph a --nodethreshold=1", "there is no option --nodethreshold; did you mean --node-t"),
        ("graph --max_n_logits 3 a", "did you mean --max-n-logits?"),
        ("intervene a --experimnet b*0", "there is no option --experimnet; did you mean --exper"),
        ("steer a --qqqq", "error: there is no option --qqqq\n"),
        ("graph a --server htp", "argument --server: 'htp' is none of auto, http, sdk; did you"),
        ("export a --to pgn", "'pgn' is none of graphml, csv, png, svg; did you mean png?"),
        ("graph Michael Jordan joue au", "a prompt of several words takes quotes around it"),
        ("status a b", "error: 'b' is unexpected\n"),
        ("graph a -z", "a text that begins with - goes behind -- at the end"),
        ("intervene a --experiment b*0", "such as --group French=2:157:4"),
    ],
)
def test_a_wrong_command_line_is_answered_with_what_was_meant(line, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(shlex.split(line))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2  # the usage of many options would hide it


def test_an_unknown_group_of_an_experiment_is_answered_with_the_closest(capsys):
    line = "intervene a --group French=2:157:4 --experiment Frnch*0 --url http://127.0.0.1:9"
    assert main(shlex.split(line)) == 2
    assert "did you mean 'French'?" in capsys.readouterr().err


def test_abbreviations_and_texts_that_look_like_options_are_read_as_before():
    assert parse(["graph", "--max-n", "3", "hello"]).job["max_n_logits"] == 3
    assert parse(["graph", "--", "--hello"]).job["prompt"] == "--hello"
    assert parse(["graph", "-- a text with spaces"]).job["prompt"] == "-- a text with spaces"
    assert parse(["steer", "a", "--temperature", "-1"]).job["temperature"] == -1
    assert parse(["graph", "a", "--attribution-target", "-5"]).job["attribution_targets"] == ["-5"]


COMMANDS = sorted(_parser().commands())
OPTIONS = sorted({name for parser in _parser().commands().values() for name in parser.options()})
VALUES = ["", "-", "--", "a", "3", "-1", "1e999", "nan", "9" * 5000, "2:157:4", "2:157:4=0", "all"]
VALUES += [
    "a=1:2:3",
    "a*0",
    "a=1,5",
    "{",
    "[]",
    '["a"]',
    "a:b",
    "/",
    "/dev/null",
    "a\0b",
    "\x1b[2J",
]
VALUES += ["2,157,4", "lorsa:1:2:3=+1", "9" * 5000 + ":1:1", "%s %(prog)s {}", "[red]", "é\n"]
words = st.sampled_from(COMMANDS + OPTIONS + VALUES) | st.text(max_size=12)
pairs = st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map(list)
joined = pairs.map(lambda pair: ["=".join(pair)])
rests = st.lists(pairs | joined | words.map(lambda word: [word]), max_size=6)


@settings(max_examples=400, deadline=None)
@example((["graph", "\ud800"], []))
@example((["--messages", "a"], []))
@given(st.tuples(st.sampled_from(COMMANDS).map(lambda name: [name]) | st.lists(words), rests))
def test_no_list_of_arguments_ends_in_a_traceback(drawn):
    arguments = [*drawn[0], *(word for part in drawn[1] for word in part)]
    said, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error):
        try:
            args = parse(arguments)
        except SystemExit as stopped:
            assert stopped.code in {0, 2}
            assert stopped.code == 0 or "error: " in error.getvalue()
            return
    if hasattr(args, "job"):
        with contextlib.suppress(WorkerError):
            parse_request(args.job)


@settings(max_examples=150, deadline=None)
@given(command=st.sampled_from(["compare", "export", "batch"]), rest=rests)
def test_no_command_on_files_ends_in_a_traceback(tmp_path_factory, command, rest):
    folder = tmp_path_factory.mktemp("files")
    arguments = [command, *(word for part in rest for word in part)]
    arguments += {"export": ["--to", "csv"], "batch": ["--out", str(folder)]}.get(command, [])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main([*arguments, str(folder / "none.csv")])
        except SystemExit as stopped:
            code = stopped.code
    assert code in {0, 2}
