"""A worker used from the command line, or from Python: `from client import Client`.

    python client.py graph "Michael Jordan joue au"                    start.py on this machine
    python client.py graph "..." --url http://localhost:8000           handler.py --rp_serve_api
    python client.py graph "..." --endpoint abc123                     Runpod, with RUNPOD_API_KEY
    python client.py steer "..." --feature 2:157:4=0 --feature 2:146:4=+10.8

Needs no torch and no model. `python client.py --help` has the rest.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from errors import WorkerError
from remote import Client, Interrupted, RemoteError, Unreachable, WorkerFailure, download, summary
from remote.arguments import DEFAULT_URL, parse
from remote.client import RUNPOD_URL
from remote.display import Display, display, duration
from remote.download import replacing
from remote.errors import NotAllowed, WrongTarget
from remote.jobs import JobStatus
from schemas import UploadReceipt

__all__ = ["Client", "main"]

OUTPUT_DIRECTORY = Path("out")
_LARGEST_SUMMARISED_BYTES = 300_000_000
_STOPPED = 130  # as shells have it for SIGINT


class ClientSettings(BaseSettings):
    """What the client reads from the environment, or from a `.env` file."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    runpod_api_key: SecretStr | None = None
    runpod_endpoint_base_url: str = RUNPOD_URL  # the name that Runpod's SDK has for it
    secret: SecretStr | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code, which `--help` lists."""
    args = parse(arguments)
    out, err = _console(), _console(stderr=True)
    try:
        _COMMANDS[args.command](args, out, err)
    except KeyboardInterrupt as stop:
        err.print(str(stop) or "stopped", markup=False, soft_wrap=True)
        return _STOPPED
    except (RemoteError, WorkerError, ValidationError, OSError) as error:
        err.print(f"[red]error[/red]  {summary.shown(_sentence(error, args))}", soft_wrap=True)
        return error.exit_code if isinstance(error, RemoteError) else 2
    return 0


def _console(*, stderr: bool = False) -> Console:
    # Without these rich colours numbers and turns ":12:" into a picture.
    return Console(highlight=False, emoji=False, stderr=stderr)


def _connect(args: Namespace) -> Client:
    settings = ClientSettings()
    if args.endpoint is None:
        secret = settings.secret
        return Client.to_url(
            args.url or DEFAULT_URL,
            None if secret is None else secret.get_secret_value(),
            kind=args.server,
        )
    if settings.runpod_api_key is None:
        raise NotAllowed("set RUNPOD_API_KEY to a key of the endpoint's account")
    return Client.to_runpod(
        args.endpoint,
        settings.runpod_api_key.get_secret_value(),
        base_url=settings.runpod_endpoint_base_url,
    )


def _run(args: Namespace, out: Console, err: Console) -> None:
    """An action: its output, shown as it comes along and then in short."""
    started = time.monotonic()
    with _connect(args) as client, display(err) as shows:
        if args.endpoint is not None and args.command == "graph" and "signed_url" not in args.job:
            words = "without --signed-url Runpod carries graphs of up to 10 MB"
            err.print(words, style="dim", soft_wrap=True)
        output = client.run(args.job, shows, args.timeout)
        path = _keep_graph(args, output, shows)
    _print_output(args, output, path, out)
    if not args.json:
        out.print(f"time    {time.monotonic() - started:.1f} s")


def _wait(args: Namespace, out: Console, err: Console) -> None:
    """Wait for a job that runs already."""
    with _connect(args) as client, display(err) as shows:
        try:
            output = client.wait(args.job_id, shows, args.timeout)
        except KeyboardInterrupt:
            raise Interrupted(f"no longer waiting; job {args.job_id} goes on") from None
        path = _keep_graph(args, output, shows)
    _print_output(args, output, path, out)


def _status(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        status = client.status(args.job_id)
    if args.json:
        _print_json(vars(status))
        return
    _print_rows(out, _status_rows(status))


def _cancel(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        client.cancel(args.job_id)
    out.print(f"job {summary.shown(args.job_id)} is cancelled", soft_wrap=True)


def _health(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        health = client.health()
    if args.json:
        _print_json(health)
    else:
        _print_rows(out, health)


def _view(args: Namespace, _out: Console, _err: Console) -> None:
    from viewer.server import ViewerError, view

    try:
        view(args.files, port=args.port, open_browser=not args.no_browser)
    except ViewerError as error:
        raise WrongTarget(str(error)) from None


_COMMANDS = {
    "graph": _run,
    "steer": _run,
    "forward-pass": _run,
    "parse-chat-prompt": _run,
    "wait": _wait,
    "status": _status,
    "cancel": _cancel,
    "health": _health,
    "view": _view,
}


def _keep_graph(args: Namespace, output: dict[str, Any], shows: Display) -> Path | None:
    """Write a graph to its file, downloading it when it was uploaded; return the file."""
    if "nodes" in output:
        if args.json and args.output is None:
            return None
        path = args.output or _path_of(output)
        with replacing(path) as file:
            file.write(orjson.dumps(output))
        return path
    if "sha256" in output and args.download_url is not None:
        receipt = UploadReceipt.model_validate(output)
        path = args.output or OUTPUT_DIRECTORY / Path(receipt.url).name.removesuffix(".gz")
        download(receipt, args.download_url, path, on_progress=shows)
        return path
    return None


def _path_of(graph: dict[str, Any]) -> Path:
    slug = str(graph["metadata"]["slug"])
    return OUTPUT_DIRECTORY / f"{Path(slug).name or 'graph'}.json"


def _print_output(args: Namespace, output: dict[str, Any], path: Path | None, out: Console) -> None:
    if args.json:
        _print_json(output)
        return
    if "sha256" in output:
        summary.print_receipt(out, UploadReceipt.model_validate(output))
        if path is None:
            return
        out.print(f"file    {summary.shown(str(path))}, its SHA-256 is right", soft_wrap=True)
        if path.stat().st_size > _LARGEST_SUMMARISED_BYTES:
            return
        output = orjson.loads(path.read_bytes())
    summary.print_output(out, output, path)


def _print_json(output: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(output, option=orjson.OPT_INDENT_2) + b"\n")


def _print_rows(out: Console, rows: dict[str, Any]) -> None:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {n}" for key, n in value.items())
        out.print(f"{name:<{width}}  {summary.shown(str(value))}", soft_wrap=True)


def _status_rows(status: JobStatus) -> dict[str, str]:
    rows = {"job": status.id, "state": status.state}
    if status.progress.share is not None:
        rows["stage"] = f"{status.progress.stage}, {status.progress.share:.0%} of the whole"
    for name, ms in (("queued", status.delay_ms), ("ran", status.execution_ms)):
        if ms is not None:
            rows[name] = duration(ms / 1000)
    if status.error is not None:
        rows["error"] = str(status.error)
    return rows


def _sentence(error: Exception, args: Namespace) -> str:
    """What went wrong, and what to do where this program knows more than its library."""
    if isinstance(error, ValidationError):
        return "the output is not what this version of the client knows; see it with --json"
    if isinstance(error, OSError):
        return f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}"
    if isinstance(error, Unreachable) and not _is_told_where(args):
        return f"{error}; start one with `python start.py`, or say where with --url or --endpoint"
    if isinstance(error, WorkerFailure) and error.code == "output_too_large":
        return f"{error} (--signed-url, --node-threshold, --edge-threshold)"
    return str(error)


def _is_told_where(args: Namespace) -> bool:
    return args.url is not None or args.endpoint is not None


if __name__ == "__main__":
    raise SystemExit(main())
