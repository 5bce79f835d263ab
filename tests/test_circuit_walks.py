"""The documents' ways from a graph to a circuit: their commands print what stands there."""

import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import dataclass

import pytest

import client
from tests.support.http_server import serving
from tools.docs_check import reason_not_to_run
from tools.documents import commands, read


@dataclass
class Walk:
    """The client's commands of a section, what the section shows, and what each command prints."""

    commands: list[list[str]]
    shown: list[str]
    printed: list[str]


WALKS = {
    "README.md": ("## From a graph to a circuit", "contrast steer graph intervene graph circuit"),
    "docs/circuits.md": (
        "## A walk",
        "graph contrast intervene steer circuit circuit batch circuit",
    ),
}


@pytest.fixture(scope="module", params=WALKS)
def walk(request, tmp_path_factory):
    """A walk whose commands were run one after the other, in an empty folder."""
    heading, names = WALKS[request.param]
    section = read(request.param).split(heading, 1)[1].split("\n## ", 1)[0]
    parts = re.findall(r"^```(sh)?\n(.*?)^```$", section, re.M | re.S)
    scripts = [line for kind, text in parts if kind for line in commands(text)]
    shown = [part for kind, text in parts if not kind for part in text.split("\n\n")]
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.chdir(tmp_path_factory.mktemp("walk"))
        patch.setenv("COLUMNS", "80")
        given = []
        printed = []
        for script in scripts:
            if reason_not_to_run(script) is not None:
                continue
            if "client.py" not in script:
                subprocess.run(["bash", "-euc", script], check=True)
            else:
                given.append(shlex.split(script.replace("\\\n", ""))[2:])
                printed.append(run(given[-1], server.url))
    assert [command[0] for command in given] == names.split()
    return Walk(given, shown, printed)


def run(command, url):
    """What a command prints, without spaces at ends of lines."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert client.main([*command, "--url", url]) == 0
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def test_the_commands_print_what_the_document_shows(walk):
    assert len(walk.shown) >= 3
    for block in walk.shown:
        assert any(block in text for text in walk.printed), block


def test_the_steer_is_the_one_that_the_contrast_proposes(walk):
    names = [command[0] for command in walk.commands]
    contrast = walk.printed[names.index("contrast")]
    [proposed] = [line for line in contrast.splitlines() if line.startswith("steer")]
    assert proposed.removeprefix("steer").split() == [
        part for part in walk.commands[names.index("steer")][2:] if part not in {"--n-tokens", "5"}
    ]
