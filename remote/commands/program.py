"""What `client.py` does with its arguments: a command, its output, an exit code."""

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

import orjson
from pydantic import ValidationError
from rich.console import Console

from errors import WorkerError
from remote.command_line.arguments import parse
from remote.commands import action, batch, circuit, compare, export, jobs, view
from remote.errors import Interrupted, NobodyThere, RemoteError, Unreachable, WorkerFailure
from remote.terminal.text import line

# An output of another form than this client knows, or nested deeper than it can be written.
_ODD_OUTPUT = (ValidationError, orjson.JSONEncodeError, RecursionError)
_EXPECTED = (RemoteError, WorkerError, OSError, *_ODD_OUTPUT)
_UNREAD = 141  # the exit code that shells use for SIGPIPE


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Go on with the error, where rich ends the process as if a job had failed."""
        raise


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; `--help` lists the codes."""
    _write_what_the_terminal_lacks_as_escapes()
    try:
        return _done(arguments)
    except BrokenPipeError:  # the reader, such as head, wants no more
        _write_nowhere()
        return _UNREAD


def _done(arguments: Sequence[str] | None) -> int:
    try:
        args = parse(arguments)
    except SystemExit:
        sys.stdout.flush()  # the help, while a reader that has gone can still be noticed
        raise
    # Without these settings rich colours numbers and turns ":12:" into a picture.
    out, err = (_Output(highlight=False, emoji=False, stderr=stderr) for stderr in (False, True))
    try:
        _COMMANDS.get(args.command, action.run)(args, out, err)
    except Interrupted as stop:
        err.print(line(str(stop)), soft_wrap=True)
        return stop.exit_code
    except BrokenPipeError:
        raise
    except _EXPECTED as error:
        err.print(f"[red]error[/red]  {line(_sentence(error, args))}", soft_wrap=True)
        if isinstance(error, _ODD_OUTPUT):
            return Unreachable.exit_code
        return error.exit_code if isinstance(error, RemoteError) else 2
    return 0


def _write_what_the_terminal_lacks_as_escapes() -> None:
    """Let a terminal without UTF-8 show `\\u2192` for an arrow, instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_nowhere() -> None:
    """Let the rest of the output go nowhere, so that Python says nothing of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _sentence(error: Exception, args: Namespace) -> str:
    """The error's message, with advice that only the command line can give."""
    if isinstance(error, (orjson.JSONEncodeError, RecursionError)):
        return "the output is nested too deeply to be shown or written"
    if isinstance(error, ValidationError):
        return "the output is not what this version of the client knows; see it with --json"
    if isinstance(error, OSError):
        return f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}"
    if isinstance(error, NobodyThere) and args.url is None and args.endpoint is None:
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
