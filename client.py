"""Use a worker from the command line, or from Python: `from client import Client`.

    python client.py graph "Michael Jordan joue au"                    start.py on this machine
    python client.py graph "..." --url http://localhost:8000           handler.py --rp_serve_api
    python client.py graph "..." --endpoint abc123                     Runpod, with RUNPOD_API_KEY
    python client.py steer "..." --feature 2:157:4=0 --feature 2:146:4=+10.8

Needs no torch and no model. `python client.py --help` has the rest. `pip install .` installs the
same as the package and the command `attribution_client`.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence

import orjson
from pydantic import ValidationError
from rich.console import Console

from errors import WorkerError
from remote.client import Client
from remote.command_line.arguments import parse
from remote.commands import action, batch, circuit, compare, export, jobs, view
from remote.download import download
from remote.errors import RemoteError, Unreachable, WorkerFailure
from remote.terminal.text import line

__all__ = ["Client", "download", "main"]

_STOPPED = 130  # the exit code that shells use for SIGINT
# An output of another form than this client knows, or nested deeper than it can be written.
_ODD_OUTPUT = (ValidationError, orjson.JSONEncodeError, RecursionError)
_EXPECTED = (RemoteError, WorkerError, OSError, *_ODD_OUTPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; `--help` lists the codes."""
    args = parse(arguments)
    # Without these settings rich colours numbers and turns ":12:" into a picture.
    out, err = (Console(highlight=False, emoji=False, stderr=stderr) for stderr in (False, True))
    try:
        _COMMANDS.get(args.command, action.run)(args, out, err)
    except KeyboardInterrupt as stop:
        err.print(line(str(stop) or "stopped"), soft_wrap=True)
        return _STOPPED
    except _EXPECTED as error:
        err.print(f"[red]error[/red]  {line(_sentence(error, args))}", soft_wrap=True)
        if isinstance(error, _ODD_OUTPUT):
            return Unreachable.exit_code
        return error.exit_code if isinstance(error, RemoteError) else 2
    return 0


def _sentence(error: Exception, args: Namespace) -> str:
    """The error's message, with advice that only the command line can give."""
    if isinstance(error, (orjson.JSONEncodeError, RecursionError)):
        return "the output is nested too deeply to be shown or written"
    if isinstance(error, ValidationError):
        return "the output is not what this version of the client knows; see it with --json"
    if isinstance(error, OSError):
        return f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}"
    if isinstance(error, Unreachable) and args.url is None and args.endpoint is None:
        return f"{error}; start one with `python start.py`, or say where with --url or --endpoint"
    if isinstance(error, WorkerFailure) and error.code == "output_too_large":
        return f"{error} (--signed-url, --node-threshold, --edge-threshold)"
    return str(error)


# Every other command does an action, or waits for one.
_COMMANDS: dict[str, Callable[[Namespace, Console, Console], None]] = {
    "status": jobs.show_status,
    "cancel": jobs.cancel,
    "health": jobs.show_health,
    "view": view.run,
    "batch": batch.run,
    "compare": compare.run,
    "circuit": circuit.run,
    "export": export.run,
}


if __name__ == "__main__":
    raise SystemExit(main())
