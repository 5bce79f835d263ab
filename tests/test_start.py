"""start.py as a program: arguments, where it listens, what it logs, how it ends."""

import ast
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
import requests

import start
from loading.registry import DEMO
from serving import listening
from settings import read_settings
from tests.support.demo_worker import demo_settings
from tests.support.http_server import GRAPH, assert_error
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port, imported_by, is_listening, run


def test_importing_it_loads_no_torch_and_no_model_library():
    assert not imported_by("import start", "torch", "transformer_lens", "transformers")


def test_arguments_win_over_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_ID", "Qwen/Qwen3-4B")
    monkeypatch.setenv("TOKEN_LIMIT", "32")
    monkeypatch.setenv("PORT", "81")
    given = ["--model_id", "google/gemma-2-2b", "--transcoder_set", "gemma", "--port", "80"]
    settings = read_settings(**start._parse_arguments(given))
    assert settings.model_id == "google/gemma-2-2b"
    assert settings.transcoder_set == "gemma"
    assert settings.listening_port == 80
    assert settings.token_limit == 32


WRONG_ARGUMENTS = [
    ("--model_di x", "error: there is no option --model_di; did you mean --model_id?"),
    ("--model-di x", "error: there is no option --model-di; did you mean --model-id?"),
    ("--model_id demo --transcoder_sett x", "did you mean --transcoder_set?"),
    ("--prot 5", "error: there is no option --prot; did you mean --port?"),
    ("--zzz", "error: there is no option --zzz\n"),
    ("demo", "error: 'demo' is unexpected\n"),
    ("--model_id", "error: argument --model_id/--model-id: expected one argument"),
]


@pytest.mark.parametrize(("line", "said"), WRONG_ARGUMENTS)
def test_a_misspelt_option_is_answered_with_what_was_meant(line, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        start._parse_arguments(line.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2  # the usage of many options would hide it


def environment(**changed):
    hidden = {"SECRET", "MODEL_ID", "TRANSCODER_SET", "PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "DEVICE": "cpu", **changed}


def test_the_program_serves_on_loopback_logs_nothing_private_and_ends_when_told(tmp_path):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "start.py"), "--model_id", "demo", "--port", str(port)],
        cwd=tmp_path,
        env=environment(MODEL_ID="google/gemma-2-2b", SERVER_HOST="0.0.0.0"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:

        def is_ready():
            assert process.poll() is None, process.stderr.read()
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200

        until(is_ready)
        # All of 127.0.0.0/8 is this machine; a server on every address answers there, too.
        with socket.socket() as connection:
            assert connection.connect_ex(("127.0.0.2", port)) != 0
        url = f"http://127.0.0.1:{port}"
        body = {**GRAPH, "signed_url": "http://10.0.0.1/bucket?X-Amz-Signature=topsecret"}
        refused = requests.post(f"{url}/generate-graph?key=topsecret", json=body, timeout=60)
        assert_error(refused, 400, "upload_url_refused")
        assert requests.get(f"{url}/health", timeout=60).json()["model"] == "demo"
    finally:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0
    assert f"serving demo, see http://127.0.0.1:{port}/docs" in log
    assert "SECRET is not set: listening on 127.0.0.1 only" in log
    assert log.index("checked a small graph and a steer in") < log.index("serving demo")
    [line] = [line for line in log.splitlines() if "generate-graph" in line]
    assert "job failed: upload_url_refused job_id=None action=generate-graph" in line
    [identity] = [line for line in log.splitlines() if " identity " in line]
    assert "version=0.1.0 commit=None model=demo transcoders=demo/transcoders" in identity
    for private in ("topsecret", "10.0.0.1", "Michael", "Traceback"):
        assert private not in log + refused.text


@contextlib.contextmanager
def started(directory, port, words):
    """The program, once it has logged these words."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "start.py"), "--port", str(port)],
        cwd=directory,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert any(words in line for line in process.stderr)
        yield process


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_told_to_end_while_it_loads_its_model_ends(tmp_path, told):
    port = free_port()
    with started(tmp_path, port, "imported the libraries") as process:
        process.send_signal(told)
        assert process.wait(LONGEST_S) == 0
    until(lambda: not is_listening(port))


def test_a_served_model_s_terminal_that_is_closed_ends_it_as_sigterm_does(tmp_path):
    port = free_port()
    with started(tmp_path, port, "serving demo, see") as process:
        process.send_signal(signal.SIGHUP)
        log = process.stderr.read()
        assert process.wait(LONGEST_S) == 0
    assert "Traceback" not in log


PREPARED = "import signal, sys; from serving import startup; startup.prepare(); "


def test_a_server_that_nohup_started_does_not_see_its_terminal_close():
    closed = f"{PREPARED} signal.raise_signal(signal.SIGHUP); print('goes on')"
    done = run("-c", closed, env=environment())
    assert (done.returncode, done.stdout) == (0, "")
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    assert run("-c", ignoring + closed, env=environment()).stdout == "goes on\n"


def test_a_question_on_stdin_finds_nobody():
    read = f"{PREPARED} print(repr(sys.stdin.read()))"
    assert run("-c", read, env=environment(), input="y\n").stdout == "''\n"
    asked = f"{PREPARED} input('run the code? ')"
    assert "EOFError" in run("-c", asked, env=environment(), input="y\n").stderr


def test_no_call_that_reads_a_repository_lets_it_bring_code():
    calls = [
        (path.name, node.func.value.id, {k.arg: ast.unparse(k.value) for k in node.keywords})
        for room in ("loading", "prompting", "actions", "attribution", "graphs", "steering")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and isinstance(node.func.value, ast.Name)
    ]
    assert len(calls) >= 3
    for *where, keywords in calls:
        assert keywords.get("trust_remote_code") == "False", where


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token_limit", "none"], "TOKEN_LIMIT='none'"),
        (["--port", "0"], "SERVER_PORT='0'"),
        (["--model_id", "/nowhere/model"], "TRANSCODER_SET"),
    ],
)
def test_a_server_that_cannot_start_says_which_setting_is_why(tmp_path, arguments, words):
    done = run(ROOT / "start.py", *arguments, cwd=tmp_path, env=environment())
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "localhost", "example.org"])
def test_without_a_secret_the_server_listens_on_loopback_only(host):
    assert listening.listening_host(demo_settings(server_host=host)) == "127.0.0.1"
    assert listening.listening_host(demo_settings(server_host=host, secret="s")) == host
    assert listening.listening_host(demo_settings(server_host="::1")) == "::1"


def test_a_server_whose_weights_are_damaged_ends_before_it_is_ready(tmp_path, demo_with_nan):
    names = {"MODEL_ID": str(demo_with_nan), "TRANSCODER_SET": DEMO.transcoder_set}
    command = (ROOT / "start.py", "--port", str(free_port()))
    done = run(*command, cwd=tmp_path, env=environment(**names), timeout=LONGEST_S)
    assert done.returncode == 1
    assert "start: blocks.1.mlp.old_mlp.W_in of" in done.stderr
    assert "holds NaN" in done.stderr
    assert "see http://" not in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_it_starts_ends_it_without_a_traceback():
    halfway = PREPARED + "print('on', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", halfway],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert said == ""
