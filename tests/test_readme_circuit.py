"""The README's way from a graph to a circuit: its commands print what stands there."""

import contextlib
import io
import re
import shlex

import pytest

import client
from tests.support.http_server import serving
from tools.documents import read

SECTION = read("README.md").split("## From a graph to a circuit")[1].split("\n## ")[0]
PARTS = re.findall(r"^```(sh)?\n(.*?)^```$", SECTION, re.M | re.S)
COMMANDS = [
    shlex.split(line)[2:]
    for kind, text in PARTS
    if kind
    for line in text.replace("\\\n", "").splitlines()
    if "client.py" in line
]
SHOWN = [part for kind, text in PARTS if not kind for part in text.split("\n\n")]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the section's commands print, one after the other, without spaces at ends of lines."""
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.chdir(tmp_path_factory.mktemp("story"))
        patch.setenv("COLUMNS", "80")
        return [run(command, server.url) for command in COMMANDS]


def run(command, url):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert client.main([*command, "--url", url]) == 0
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def test_the_commands_print_what_the_readme_shows(output):
    assert [command[0] for command in COMMANDS] == [
        *("contrast", "steer", "graph", "intervene", "graph", "circuit")
    ]
    assert len(SHOWN) == 3
    for block in SHOWN:
        assert any(block in text for text in output), block


def test_the_steer_is_the_one_that_the_contrast_proposes(output):
    [proposed] = [line for line in output[0].splitlines() if line.startswith("steer")]
    assert proposed.removeprefix("steer").split() == [
        part for part in COMMANDS[1][2:] if part not in {"--n-tokens", "5"}
    ]
