"""client.py's command line: what it reads, what it says, how it ends."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
import requests

from client import main
from remote.command_line.arguments import parse
from remote.commands import connecting
from tests.support.demo_worker import PROMPT
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT, free_port, imported_by
from tests.support.raw_server import RawServer
from tools.documents import read

PAGE = read("docs/client.md")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory of its own, without a `.env` file, and none of the client's variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("RUNPOD_API_KEY", "SECRET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_importing_it_needs_no_torch_and_none_of_the_worker_s_servers():
    heavy = ("torch", "transformers", "runpod", "fastapi", "uvicorn", "settings", "actions")
    program = "from client import Client, download; import remote.commands.program"
    assert not imported_by(program, *heavy)


COMMANDS = [
    line.removeprefix(".venv/bin/python client.py ")
    for line in PAGE.replace("\\\n", "").split("```sh")[1].split("```")[0].splitlines()
    if line.startswith(".venv/bin/python client.py ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_s_commands_do_what_they_say(command, server, workplace, capsys):
    assert main([*shlex.split(command, comments=True), "--url", server.url]) == 0
    said = capsys.readouterr().out
    expected = {
        "graph": "graph   out/michael-jordan-joue-au",
        "steer": '" baloncesto"',
        "forward-pass": '4         " au"',
        "parse-chat-prompt": "positions that can't be steered: 0",
        "contrast": "--feature 2:146:4=+10.79",
        "intervene": 'French off, Spanish = 10.8  " baloncesto"  0.7024',
        "health": "model        demo",
    }
    assert expected[command.split()[0]] in said


def test_the_page_s_commands_are_there():
    assert len(COMMANDS) >= 4


def test_the_page_s_python_runs(server, workplace):
    program = PAGE.split("```python")[1].split("```")[0]
    program = program.replace("http://localhost:5004", server.url)
    assert server.url in program
    names = {}
    exec(program, names)
    assert names["graph"]["metadata"]["prompt"].endswith(PROMPT)
    assert " baloncesto" in names["steered"].STEERED_GENERATION


def test_a_steer_without_features_is_the_baseline(server, capsys):
    assert parse(["steer", "hello"]).job == {"action": "steer", "prompt": "hello", "features": []}
    assert main(["steer", PROMPT, "--n-tokens", "2", "--url", server.url]) == 0
    assert "no prediction changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("graph", 2, "exactly one of prompt and messages"),
        ("graph hello --node-threshold 2", 2, "node_threshold: input should be less than"),
        ("graph hello --url ftp://host", 2, "'ftp://host' is no http(s) URL"),
        ("graph hello --endpoint abc", 2, "set RUNPOD_API_KEY"),
        ("graph " + "a" * 400, 1, "prompt_too_long: "),
        ("graph hello --server sdk", 2, "is not the SDK's local API"),
        ("status abc", 2, "only a Runpod endpoint has; name one with --endpoint"),
        ("graph hello -o /proc/none/graph.json", 2, "/proc/none"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    line, code, words, server, workplace, capsys
):
    where = [] if "--endpoint" in line or "--url" in line else ["--url", server.url]
    assert main([*shlex.split(line), *where]) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error  ")
    assert words in error


def refusing(connection, _request):
    connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")


def test_only_where_nobody_is_there_is_one_told_to_start_a_worker(workplace, monkeypatch, capsys):
    monkeypatch.setattr(connecting, "DEFAULT_URL", f"http://127.0.0.1:{free_port()}")
    assert main(["forward-pass", PROMPT]) == 3
    assert "start one with `python start.py`" in capsys.readouterr().err
    with RawServer([refusing]) as server:
        monkeypatch.setattr(connecting, "DEFAULT_URL", f"http://127.0.0.1:{server.port}")
        assert main(["forward-pass", PROMPT, "--server", "http"]) == 3
    said = capsys.readouterr().err
    assert "answered 500" in said
    assert "start one" not in said


def test_the_key_stays_out_of_what_is_said(workplace, monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_API_KEY", "planted-key")
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", f"http://127.0.0.1:{free_port()}/v2")
    assert main(["graph", PROMPT, "--endpoint", "abc"]) == 3
    said = capsys.readouterr()
    assert "planted-key" not in said.out + said.err


def test_json_is_the_output_alone(server, workplace, capfdbinary):
    assert main(["forward-pass", PROMPT, "--json", "--url", server.url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["salient_logits"]
    assert main(["graph", PROMPT, "--json", "--url", server.url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["nodes"]
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(("slug", "name"), [("NUL", "graph-NUL"), ("com1-a", "com1-a")])
def test_a_graph_that_is_called_as_a_device_of_windows_gets_another_file_name(
    slug, name, server, workplace
):
    assert main(["graph", PROMPT, "--slug-identifier", slug, "--url", server.url]) == 0
    assert [path.name for path in (workplace / "out").iterdir()] == [f"{name}.json"]


def test_view_serves_a_graph_until_ctrl_c(server, workplace):
    assert main(["graph", PROMPT, "-o", "graph.json", "--url", server.url]) == 0
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "client.py"), "view", "graph.json", "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
    )
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    assert requests.get(url, timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(LONGEST_S) == 0


def test_a_file_that_is_no_graph_is_not_viewed(workplace, capsys):
    assert main(["view", "nothing.json"]) == 2
    assert capsys.readouterr().err.startswith("error  nothing.json: ")
