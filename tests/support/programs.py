"""Python programs in processes of their own."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str | Path, cwd: Path = ROOT, **options) -> subprocess.CompletedProcess[str]:
    """Run a program, given by Python's own arguments, whatever its exit code is."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


def output_of(program: str, **options) -> str:
    """What a program prints, which must end well."""
    done = run("-c", program, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def imported_by(program: str, *modules: str) -> set[str]:
    """Those of these modules that a process has imported after it ran the program."""
    asked = f"import json, sys; print(json.dumps([m for m in {modules!r} if m in sys.modules]))"
    return set(json.loads(output_of(f"{program}\n{asked}\n").splitlines()[-1]))


def without(*names: str, prefix: str | None = None) -> dict[str, str]:
    """The environment without these variables, and without those that begin with the prefix."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in names and not (prefix and name.startswith(prefix))
    }


# Sockets that hold ports of loopback for as long as this process lives.
_HOLDERS: list[socket.socket] = []


def free_port() -> int:
    """A port of loopback on which nobody listens, until a program of this test does.

    A socket stays bound to it and doesn't listen. So the system gives the port to no other program
    that asks for any, while one that names it, with SO_REUSEADDR as servers have it, may listen.
    """
    while True:
        port = _hold(socket.AF_INET, "127.0.0.1", 0)
        try:
            _hold(socket.AF_INET6, "::1", port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue  # another program has it there
        return port


def _hold(family: int, address: str, port: int) -> int:
    """Bind a socket to a port, 0 for any, and return the port."""
    holder = socket.socket(family)
    _HOLDERS.append(holder)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((address, port))
    bound: int = holder.getsockname()[1]
    return bound


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
