"""What start.py answers from its first second on, and on which ports."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from serving import http_api, http_bounds
from settings import read_settings
from tests.support.http_server import FORWARD, assert_error, get, serving
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port, is_listening, run

SECRET = "correct horse battery staple"


def environment(**changed):
    hidden = {"SECRET", "MODEL_ID", "TRANSCODER_SET", "PORT", "PORT_HEALTH", "SERVER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "DEVICE": "cpu", "SERVER_HOST": "127.0.0.1", "PYTHONPATH": str(ROOT), **changed}


@contextmanager
def loading(directory, **variables):
    """A `start.py` that loads, holding the interpreter lock, until a byte is written to it."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.blocked_start"],
        cwd=directory,
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"loading\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def finish(process):
    process.stdin.write(b"\n")
    process.stdin.flush()


def status(port, path="/ping"):
    return requests.get(f"http://127.0.0.1:{port}{path}", timeout=60).status_code


def test_while_the_model_loads_pings_are_answered_and_actions_are_told_to_come_again(tmp_path):
    port = free_port()
    with loading(tmp_path, PORT=str(port), SECRET=SECRET, SERVER_PORT="1") as process:
        url = f"http://127.0.0.1:{port}"
        ping = requests.get(f"{url}/ping", timeout=60)
        assert (ping.status_code, ping.content) == (204, b"")
        head = requests.head(f"{url}/ping", timeout=60)
        assert (head.status_code, head.content) == (204, b"")
        for key in ({}, {"x-secret-key": SECRET}):
            response = requests.post(f"{url}/forward-pass", json=FORWARD, headers=key, timeout=60)
            assert_error(response, 503, "loading")
            assert int(response.headers["Retry-After"]) > 0
        assert_error(requests.get(f"{url}/health", timeout=60), 503, "loading")
        finish(process)
        until(lambda: status(port) == 200)
        assert requests.get(f"{url}/health", timeout=60).json()["model"] == "demo"
        response = requests.post(f"{url}/forward-pass", json=FORWARD, timeout=60)
        assert_error(response, 401, "unauthorized")


def test_a_body_of_any_size_is_answered_while_the_model_loads(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)):
        url = f"http://127.0.0.1:{port}/steer"
        body = json.dumps({"prompt": "a" * http_api.MAX_BODY_BYTES}).encode()
        headers = {"Content-Type": "application/json"}
        assert_error(requests.post(url, data=body, headers=headers, timeout=60), 503, "loading")


def test_while_the_model_loads_no_other_host_s_page_is_answered(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)):
        url = f"http://127.0.0.1:{port}"
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            for path in ("/ping", "/health", "/steer"):
                answer = requests.get(url + path, headers=headers, timeout=60)
                assert_error(answer, 403, "forbidden")
        assert requests.get(f"{url}/ping", headers={"Origin": url}, timeout=60).status_code == 204


@pytest.mark.parametrize("ports", [{}, {"PORT_HEALTH"}], ids=["one port", "PORT_HEALTH"])
def test_while_the_model_loads_a_head_and_the_clients_that_wait_are_bounded(tmp_path, ports):
    ports = {name: str(free_port()) for name in ("PORT", *ports)}
    with loading(tmp_path, **ports, SECRET=SECRET), contextlib.ExitStack() as waiting:
        for port in map(int, ports.values()):
            headers = {f"x-{i}": "a" for i in range(200)}
            answer = requests.get(f"http://127.0.0.1:{port}/ping", headers=headers, timeout=60)
            assert_error(answer, 431, "head_too_large")
            others = [
                waiting.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(http_bounds.MAX_CONNECTIONS + 50)
            ]
            assert status(port) == 204
            until(lambda others=others: sum(map(is_closed, others)) >= 50)


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_pings_are_204_until_the_worker_is_ready_and_200_from_then_on(tmp_path):
    port = free_port()
    # Of each client its own: which of two that ask at once is noted first is chance.
    seen = [[], []]

    def ping_until_ready(answers):
        while answers.count(200) < 25:
            answers.append(status(port))

    with loading(tmp_path, PORT=str(port), SECRET=SECRET) as process:
        threads = [threading.Thread(target=ping_until_ready, args=(own,)) for own in seen]
        for thread in threads:
            thread.start()
        until(lambda: min(map(len, seen)) > 25)
        finish(process)
        for thread in threads:
            thread.join()
    for answers in seen:
        assert set(answers) == {204, 200}
        assert 204 not in answers[answers.index(200) + 1 :]


def test_a_client_that_asks_nothing_holds_the_start_up_only_for_a_moment(tmp_path):
    port = free_port()
    with (
        loading(tmp_path, PORT=str(port), SECRET=SECRET) as process,
        socket.create_connection(("127.0.0.1", port)),
    ):
        assert status(port) == 204
        finish(process)
        until(lambda: status(port) == 200)


HEAD = b"%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: 20\r\n\r\n"


# What a client has sent when the model is ready, what it sends then, and the answer's status.
LATE = [
    (b"", HEAD % b"GET /ping" + b"\r\n", b"200"),
    (HEAD % b"GET /ping", b"\r\n", b"200"),
    (HEAD % b"GET /health", b"\r\n", b"503"),
    (HEAD % b"POST /steer" + LENGTH + b'{"prompt": ', b'"abcdef"}', b"503"),
    (HEAD % b"POST /steer" + b"Origin: http://evil.example\r\n" + LENGTH, b"a" * 20, b"403"),
]


def test_a_client_that_connects_while_the_model_loads_is_answered_whenever_it_asks(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)) as process, contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in LATE
        ]
        for client, (before, _, _) in zip(clients, LATE, strict=True):
            client.sendall(before)
        assert status(port) == 204  # so the clients, who came earlier, are accepted too
        finish(process)
        until(lambda: status(port) == 200)
        for client, (_, after, expected) in zip(clients, LATE, strict=True):
            client.sendall(after)
            with client.makefile("rb") as answer:
                assert answer.readline().split()[1] == expected
                assert b"connection: close\r\n" in answer.read().lower()


# What the process that answers while the model loads does with clients that come in the very turn
# of its loop in which it is told that the model is loaded.
HANDING_OVER = """
import asyncio, os, socket, sys
from serving import listening
from settings import Settings

async def main(told_first):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    reading, telling = os.pipe()
    hearing, stopping = os.pipe()
    settings = Settings(_env_file=None)
    answering = asyncio.create_task(
        listening._answer_until_told(settings, [listener], reading, stopping)
    )
    async def is_accepting():
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /ping HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
        await reader.read()
        writer.close()

    await is_accepting()
    if told_first:
        os.write(telling, b"1")
    clients = [socket.create_connection(address, timeout=300) for _ in range(5)]
    for client in clients:
        client.sendall(b"GET /ping HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    if not told_first:
        os.write(telling, b"1")
    for client in clients:
        print((await asyncio.to_thread(client.recv, 100)).split()[1].decode())
    await answering

asyncio.run(main(sys.argv[1] == "told first"))
"""


@pytest.mark.parametrize("order", ["told first", "told last"])
def test_clients_that_come_when_the_model_is_ready_are_all_answered(order):
    done = run("-c", HANDING_OVER, order)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200"] * 5


def test_the_process_that_answers_while_the_model_loads_ends_when_it_has_answered_all(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)) as process:
        [child] = children_of(process.pid)
        with socket.create_connection(("127.0.0.1", port)):
            assert status(port) == 204
            finish(process)
            until(lambda: status(port) == 200)
            assert child in children_of(process.pid)
        until(lambda: child not in children_of(process.pid))
        assert status(port) == 200


def test_a_worker_that_is_stopped_takes_that_process_along(tmp_path):
    port = free_port()
    with (
        loading(tmp_path, SERVER_PORT=str(port)) as process,
        socket.create_connection(("127.0.0.1", port)),
    ):
        [child] = children_of(process.pid)
        assert status(port) == 204
        finish(process)
        until(lambda: status(port) == 200)
        process.terminate()
        process.wait(LONGEST_S)
        until(lambda: has_ended(child))


def has_ended(pid):
    """Whether a process is gone, or only waited for by nobody: not all containers have an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def children_of(pid):
    """The processes that a process has started, those that ended and are not waited for too."""
    listed = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            listed += path.read_text().split()
    return [int(child) for child in listed]


def test_another_port_for_pings_answers_nothing_else_before_and_after(tmp_path):
    port, port_health = free_port(), free_port()
    ports = {"PORT": str(port), "PORT_HEALTH": str(port_health)}
    with loading(tmp_path, **ports, SECRET=SECRET) as process:

        def check(ping):
            assert status(port_health) == status(port) == ping
            for path in ("/health", "/forward-pass", "/docs"):
                url = f"http://127.0.0.1:{port_health}{path}"
                assert_error(requests.get(url, timeout=60), 404, "not_found")

        check(204)
        finish(process)
        until(lambda: status(port_health) == 200)
        check(200)
        assert status(port, "/health") == 200


def test_a_ready_server_answers_pings_without_the_secret():
    with serving(secret=SECRET) as server:
        ping = get(server, "/ping")
        assert (ping.status_code, ping.content) == (200, b"")


def test_a_load_that_fails_ends_the_process_with_one_line_and_lets_go_of_the_port(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)) as process:
        assert status(port) == 204
        process.stdin.close()
        assert process.wait(LONGEST_S) == 1
        assert process.stderr.read().decode().splitlines()[-1] == "start: there was no line"
        assert not is_listening(port)


def test_a_process_that_is_killed_while_it_loads_leaves_nobody_on_its_port(tmp_path):
    port = free_port()
    with loading(tmp_path, SERVER_PORT=str(port)) as process:
        assert status(port) == 204
        process.kill()
        until(lambda: not is_listening(port))


def refused(directory, **variables):
    """What start.py says when it ends before it loads anything."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "start.py")],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line


def test_with_a_load_balancer_s_port_and_no_secret_the_server_refuses_to_start(tmp_path):
    line = refused(tmp_path, PORT=str(free_port()))
    assert line.startswith("start: PORT")
    assert "SECRET" in line


@pytest.mark.parametrize("setting", ["PORT", "SERVER_PORT", "PORT_HEALTH"])
def test_a_port_that_is_taken_is_named_before_the_model_loads(tmp_path, setting):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        chosen = {"SERVER_PORT": str(free_port()), "SECRET": SECRET, setting: taken}
        line = refused(tmp_path, **chosen)
    assert line.startswith(f"start: {setting}={taken}: ")
    assert "in use" in line


def test_an_address_that_is_not_this_machine_s_is_named_before_the_model_loads(tmp_path):
    line = refused(tmp_path, SERVER_HOST="203.0.113.7", SECRET=SECRET, SERVER_PORT="5004")
    assert "SERVER_HOST=203.0.113.7" in line


def test_a_load_balancer_s_port_wins_over_the_server_s(monkeypatch):
    monkeypatch.setenv("SERVER_PORT", "5005")
    assert read_settings().listening_port == 5005
    monkeypatch.setenv("PORT", "80")
    assert read_settings().listening_port == 80
