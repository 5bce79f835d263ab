"""client.py's output where it is no UTF-8 terminal: a pipe without a reader, other encodings."""

import os
import subprocess
import sys

import orjson
import pytest

from remote.command_line.arguments import parse
from remote.commands.connecting import labels_for
from remote.errors import WrongTarget
from tests.support.circuit_graphs import documents
from tests.support.programs import ROOT


@pytest.fixture
def run(tmp_path):
    """Run the client with two files of the demo's graph; what it ends with."""
    document = documents()[2]
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(orjson.dumps(document))

    def run_client(*arguments, stdout=subprocess.PIPE, **variables):
        return subprocess.run(
            [sys.executable, ROOT / "client.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "", **variables},
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )

    return run_client


@pytest.mark.parametrize(
    "line", ["compare a.json b.json", "compare a.json b.json --json", "compare --help"]
)
def test_a_reader_that_wants_no_more_ends_the_client_without_a_word(run, line):
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(*line.split(), stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_a_terminal_can_not_show_is_written_as_an_escape(run):
    done = run("compare", "a.json", "b.json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"au \\u2192 plein" in done.stdout


def test_no_colour_is_written_where_none_is_wanted(run):
    coloured = run("compare", "a.json", "none.json", FORCE_COLOR="1")
    assert b"\x1b[31merror" in coloured.stderr
    plain = run("compare", "a.json", "none.json", FORCE_COLOR="1", NO_COLOR="1")
    assert plain.stderr.startswith(b"error  none.json: ")


def test_settings_that_are_not_utf_8_are_one_sentence(run, tmp_path):
    (tmp_path / ".env").write_bytes("SECRET=ä".encode("utf-16"))
    done = run("compare", "a.json", "b.json")
    assert (done.returncode, done.stderr) == (
        2,
        b"error  the file .env is not UTF-8; save it as UTF-8\n",
    )


def test_labels_without_a_home_folder_ask_for_another(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # that no system knows
    with pytest.raises(WrongTarget, match="set XDG_CACHE_HOME"):
        labels_for(parse(["compare", "a", "b", "--labels"]), None).__enter__()
