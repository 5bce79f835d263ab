"""Where a graph is to be written is looked at before a worker computes it."""

import os
import shlex

import pytest

from client import main
from remote.command_line.arguments import parse
from remote.download import replacing

CLOSED = ["--url", "http://127.0.0.1:9"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("graph a -o folder", "folder is a folder; name a file in it, such as folder/graph.json"),
        ("graph a --format pt -o folder", "folder is a folder; name a file in it"),
        ("wait x -o folder", "folder is a folder; name a file in it"),
        (f"graph a -o {'x' * 300}.json", "its name has 305 bytes, and a file's has 255 at most"),
        ("graph a -o file/graph.json", "file is no folder"),
        ("graph a -o /dev/null", "/dev/null is no plain file"),
        ("graph a -o ''", "name a file"),
        ("graph a -o out/graph.pt", "a .pt file is circuit-tracer's own; add --format pt, or"),
        ("graph a --format pt -o graph.json", "--format pt writes circuit-tracer's own file, and"),
        ("export file --to svg -o folder", "folder is a folder; name a file in it"),
        ("export file --to graphml -o folder", "such as folder/graph.graphml"),
    ],
)
def test_a_place_that_can_not_be_written_is_refused_at_once(line, said, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(shlex.split(line))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_at_once(folder, capsys):
    (folder / "folder").chmod(0o500)
    with pytest.raises(SystemExit):
        parse(["graph", "a", "-o", "folder/deep/graph.json"])
    assert "folder can't be written" in capsys.readouterr().err


def test_the_longest_name_that_a_file_may_have_can_be_written(folder):
    path = folder / ("x" * 250 + ".json")
    with replacing(path) as file:
        file.write(b"a")
    assert path.read_bytes() == b"a"


def test_an_error_names_the_file_that_was_wanted_and_leaves_nothing_behind(folder):
    with pytest.raises(OSError, match="folder") as raised, replacing(folder / "folder") as file:
        file.write(b"a")
    assert raised.value.filename == str(folder / "folder")
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "folder"]


def test_other_places_are_let_through(folder):
    for line in ("-o new/deep/graph.json", "-o graph", "--format pt -o graph", "-o file"):
        assert parse(shlex.split(f"graph a {line}")).output is not None
    assert parse(shlex.split("export file --to csv -o folder")).output is not None
    assert main(["graph", "a", "-o", "new/graph.json", *CLOSED, "--timeout", "1"]) == 3
    assert not (folder / "new").exists()
