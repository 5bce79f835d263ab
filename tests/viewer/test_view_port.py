"""`client.py view` is at the same port each time, so that saved addresses can be opened."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests

from tests.support.hostile_graphs import sound
from tests.support.programs import ROOT
from viewer.server import DEFAULT_PORT, LOOPBACK


@contextmanager
def viewing(file, *arguments):
    """The first line that the program prints, while it runs."""
    program = [sys.executable, "client.py", "view", str(file), "--no-browser", *arguments]
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            line = running.stdout.readline()
            assert requests.get(f"http://127.0.0.1:{port_of(line)}/", timeout=60).ok
            yield line
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""


@contextmanager
def taken(port):
    """Something listens there: what is no viewer, unless one of another test does already."""
    try:
        listener = socket.create_server((LOOPBACK, port))
    except OSError:
        yield
    else:
        with listener:
            yield


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(sound()))
    return path


def port_of(line):
    return int(line.split(" at http://127.0.0.1:")[1].split("/")[0])


def test_the_port_is_one_that_no_system_gives_to_whoever_asks_for_any():
    assert 1024 <= DEFAULT_PORT < 32_768


def test_a_second_viewer_is_at_the_next_free_port_and_says_who_has_the_first(file):
    with viewing(file) as first, viewing(file) as second:
        assert DEFAULT_PORT <= port_of(first) < port_of(second) < DEFAULT_PORT + 20
        assert f"(not at port {DEFAULT_PORT}, where saved addresses lead: another " in second
        if port_of(first) == DEFAULT_PORT:
            assert first.endswith("until Ctrl-C\n")
            assert "another `view` is there" in second


def test_a_port_that_another_program_has_is_left_to_it(file):
    with taken(DEFAULT_PORT), viewing(file) as line:
        assert port_of(line) > DEFAULT_PORT
        assert f"(not at port {DEFAULT_PORT}, where saved addresses lead: another " in line


def test_a_port_that_was_named_is_the_port(file):
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with viewing(file, "--port", str(port)) as line:
        assert port_of(line) == port
        assert line.endswith("until Ctrl-C\n")
