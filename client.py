"""Use a worker from the command line, or from Python: `from client import Client`.

    python client.py graph "Michael Jordan joue au"                    start.py on this machine
    python client.py graph "..." --url http://localhost:8000           handler.py --rp_serve_api
    python client.py graph "..." --endpoint abc123                     Runpod, with RUNPOD_API_KEY
    python client.py steer "..." --feature 2:157:4=0 --feature 2:146:4=+10.8

Needs no torch and no model. `python client.py --help` has the rest. `pip install .` installs the
same as the package and the command `attribution_client`.
"""

import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from errors import WorkerError
from remote import summary
from remote.arguments import parse
from remote.client import RUNPOD_URL, Client
from remote.commands import DEFAULT_URL
from remote.display import Display, duration
from remote.download import download, replacing
from remote.errors import (
    NotAllowed,
    NotTheGraph,
    RemoteError,
    Unreachable,
    WorkerFailure,
    WrongTarget,
)
from remote.graph_document import GraphDocument
from remote.graph_files import FORMAT, SUFFIX, is_torch_file, print_file, wants_file
from remote.graph_summary import print_graph
from remote.jobs import JobStatus
from remote.label_examples import print_examples
from remote.labels import Labels, open_labels
from remote.neuronpedia import URL as NEURONPEDIA_URL
from remote.terminal_text import line
from schemas import UploadReceipt, parse_request

__all__ = ["Client", "download", "main"]

OUTPUT_DIRECTORY = Path("out")
_LARGEST_SUMMARISED_BYTES = 300_000_000
_STOPPED = 130  # the exit code that shells use for SIGINT
_LONGEST_FILE_NAME = 200
_WIDEST_NAME = 30  # of a row's
# What a terminal may obey or hide, among what JSON leaves as it is. `\u009b` is the same in JSON.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


# An output of another form than this client knows, or nested deeper than it can be written.
_ODD_OUTPUT = (ValidationError, orjson.JSONEncodeError, RecursionError)
_EXPECTED = (RemoteError, WorkerError, OSError, *_ODD_OUTPUT)


class ClientSettings(BaseSettings):
    """What the client reads from the environment, or from a `.env` file."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    runpod_api_key: SecretStr | None = None
    runpod_endpoint_base_url: str = RUNPOD_URL  # Runpod's SDK reads the same variable
    secret: SecretStr | None = None
    feature_labels: bool = False  # whether labels are fetched without --labels
    neuronpedia_url: str = NEURONPEDIA_URL
    neuronpedia_api_key: SecretStr | None = None
    xdg_cache_home: Path | None = None  # labels are kept in here


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; `--help` lists the codes."""
    args = parse(arguments)
    # Without these settings rich colours numbers and turns ":12:" into a picture.
    out, err = (Console(highlight=False, emoji=False, stderr=stderr) for stderr in (False, True))
    try:
        _COMMANDS.get(args.command, _run)(args, out, err)
    except KeyboardInterrupt as stop:
        err.print(line(str(stop) or "stopped"), soft_wrap=True)
        return _STOPPED
    except _EXPECTED as error:
        err.print(f"[red]error[/red]  {line(_sentence(error, args))}", soft_wrap=True)
        if isinstance(error, _ODD_OUTPUT):
            return Unreachable.exit_code
        return error.exit_code if isinstance(error, RemoteError) else 2
    return 0


def _settings() -> ClientSettings:
    try:
        return ClientSettings()
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = str(found["loc"][0]).upper()
        raise WrongTarget(f"{name} is {found['input']!r}: {found['msg']}") from None


@contextmanager
def _labels(args: Namespace, err: Console) -> Iterator[Labels | None]:
    """Where the names of features come from, if they are asked for."""
    settings = _settings()
    asked = getattr(args, "labels", False)  # None: neither --labels nor --no-labels
    if not (settings.feature_labels if asked is None else asked):
        yield None
        return
    key = settings.neuronpedia_api_key
    labels = open_labels(
        settings.neuronpedia_url,
        None if key is None else key.get_secret_value(),
        settings.xdg_cache_home or Path.home() / ".cache",
        lambda sentence: err.print(line(sentence), style="yellow", soft_wrap=True),
    )
    with closing(labels):
        yield labels


def _connect(args: Namespace) -> Client:
    settings = _settings()
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
    """Do an action, or wait for a job that was sent before, and print the output."""
    started = time.monotonic()
    if hasattr(args, "job"):
        parse_request(args.job)  # what is wrong with it is said even if no server answers
    if args.command == "graph" and wants_file(args.job):
        _save(args, out, err, started)
        return
    with _connect(args) as client, Display(err) as display:
        if args.endpoint is not None and args.command == "graph" and "signed_url" not in args.job:
            words = "without --signed-url Runpod carries graphs of up to 10 MB"
            err.print(words, style="dim", soft_wrap=True)
        if args.command == "wait":
            output = client.wait(args.job_id, display, args.timeout)
        else:
            on_part = display.add_part if args.job.get("stream") else None
            output = client.run(args.job, display, args.timeout, on_part)
        path = _write_graph(args, output, display)
        model = _model(client) if args.command == "forward-pass" and not args.json else None
    if args.json:
        _print_json(output)
        return
    with _labels(args, err) as labels:
        summary.print_output(out, output, path, model, labels)
        if labels is not None and "nodes" in output:
            print_examples(out, output, labels)
        if "sha256" in output and path is not None:
            out.print(f"file    {line(str(path))}, its SHA-256 is right", soft_wrap=True)
            if is_torch_file(path):
                print_file(out, path)
            elif path.stat().st_size <= _LARGEST_SUMMARISED_BYTES:
                _summarise(out, path, labels)
    if args.command != "wait":
        out.print(f"time    {time.monotonic() - started:.1f} s")


def _save(args: Namespace, out: Console, err: Console, started: float) -> None:
    """Have a graph's file written as it comes, and say what it is."""

    def place(name: str) -> Path:
        path: Path | None = args.output
        return path or OUTPUT_DIRECTORY / _pt_name(name)

    with _connect(args) as client, Display(err) as display:
        path = client.run_to_file(args.job, place, display, args.timeout)
    if args.json:
        _print_json({"file": str(path), "bytes": path.stat().st_size})
        return
    print_file(out, path)
    out.print(f"time    {time.monotonic() - started:.1f} s")


def _model(client: Client) -> str | None:
    """The name of the server's model, where it says so: Runpod doesn't."""
    try:
        name = client.health().get("model")
    except RemoteError:
        return None
    return name if isinstance(name, str) else None


def _summarise(out: Console, path: Path, labels: Labels | None) -> None:
    """Print what is in a downloaded graph."""
    try:
        graph = orjson.loads(path.read_bytes())
        print_graph(out, graph, path, labels)
        if labels is not None:
            print_examples(out, graph, labels)
    except (orjson.JSONDecodeError, ValidationError):
        raise NotTheGraph(f"{path} is what the worker has uploaded, but it is no graph") from None


def _status(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        status = client.status(args.job_id)
    _print_rows(args, out, vars(status), _status_rows(status))


def _cancel(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        client.cancel(args.job_id)
    out.print(f"job {line(args.job_id)} is cancelled", soft_wrap=True)


def _health(args: Namespace, out: Console, _err: Console) -> None:
    with _connect(args) as client:
        health = client.health()
    _print_rows(args, out, health, health)


def _view(args: Namespace, _out: Console, err: Console) -> None:
    from remote.viewer_worker import worker_of
    from viewer.graph_files import ViewerError
    from viewer.server import view

    has_worker = args.worker or args.url is not None or args.endpoint is not None
    try:
        with (
            _labels(args, err) as labels,
            _connect(args) if has_worker else nullcontext() as client,
        ):
            view(
                args.files,
                port=args.port,
                open_browser=not args.no_browser,
                descriptions=labels,
                worker=None if client is None else worker_of(client),
            )
    except ViewerError as error:
        raise WrongTarget(str(error)) from None


def _batch(args: Namespace, out: Console, err: Console) -> None:
    from remote.batch_command import run_batch

    run_batch(args, lambda: _connect(args), out, err)


def _compare(args: Namespace, out: Console, err: Console) -> None:
    from remote.compare import compare
    from remote.compare_tables import as_json, print_comparison

    with _labels(args, err) as labels:
        comparison = compare(args.graphs, labels, None if args.json else args.top)
    if args.json:
        _print_json(as_json(comparison))
    else:
        print_comparison(out, comparison, args.top)


def _circuit(args: Namespace, out: Console, err: Console) -> None:
    from remote.circuit_command import run_circuit
    from remote.circuit_report import as_json, print_report

    with _connect(args) as client, Display(err) as display:
        report = run_circuit(
            args, lambda job: client.run(job, display, args.timeout), client.transcoders
        )
    if args.json:
        _print_json(as_json(report))
    else:
        print_report(out, report)
    report.raise_for_failures()


def _export(args: Namespace, out: Console, err: Console) -> None:
    from remote.export import beside, export

    with _labels(args, err) as labels:
        if args.to in {"png", "svg"}:
            paths = [args.output or beside(args.graph, f".{args.to}")]
            picture = _picture(args.graph, args.to, labels)
            with replacing(paths[0]) as file:
                file.write(picture)
        else:
            paths = export(args.graph, args.to, args.output, labels)
    for path in paths:
        size = summary.size(path.stat().st_size)
        out.print(f"file    {summary.line(str(path))} ({size})", soft_wrap=True)


def _picture(graph: Path, form: Literal["png", "svg"], labels: Labels | None) -> bytes:
    from viewer.graph_files import ViewerError
    from viewer.picture import take_picture

    try:
        return take_picture(graph, form, labels)
    except ViewerError as error:
        raise WrongTarget(str(error)) from None


def _write_graph(args: Namespace, output: dict[str, Any], display: Display) -> Path | None:
    """Write a graph to its file, after a download when it was uploaded; return the file.

    None when the output is no graph, or `--json` prints it instead.
    """
    if not hasattr(args, "output"):  # of an action that makes no graph
        return None
    if "nodes" in output:
        if args.json and args.output is None:
            return None
        slug = GraphDocument.model_validate(output).metadata.slug
        path: Path = args.output or OUTPUT_DIRECTORY / f"{_file_name(slug)}.json"
        content = orjson.dumps(output)
        with replacing(path) as file:
            file.write(content)
        return path
    if "sha256" in output and args.download_url is not None:
        receipt = UploadReceipt.model_validate(output)
        stored = receipt.url.rpartition("/")[2].removesuffix(".gz")
        name = _pt_name(stored) if output.get("format") == FORMAT else _file_name(stored)
        path = args.output or OUTPUT_DIRECTORY / name
        download(receipt, args.download_url, path, on_progress=display)
        return path
    return None


def _file_name(text: str) -> str:
    """A name of a file in this folder, of a text that came from the worker."""
    name = re.sub(r"[^\w.-]+", "-", text).lstrip(".").encode()[:_LONGEST_FILE_NAME]
    return name.decode(errors="ignore") or "graph"


def _pt_name(text: str) -> str:
    """The same for circuit-tracer's own file of a graph."""
    return f"{_file_name(text.removesuffix(SUFFIX))}{SUFFIX}"


def _print_json(output: Any) -> None:
    text = orjson.dumps(output, option=orjson.OPT_INDENT_2).decode()
    text = _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    sys.stdout.buffer.write(text.encode() + b"\n")


def _print_rows(
    args: Namespace, out: Console, output: dict[str, Any], rows: dict[str, Any]
) -> None:
    """Print the rows as a table, or with `--json` the output."""
    if args.json:
        _print_json(output)
        return
    width = min(max(map(len, rows), default=0), _WIDEST_NAME)
    for name, value in rows.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {n}" for key, n in value.items())
        out.print(f"{line(name):<{width}}  {line(str(value))}", soft_wrap=True)


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
    "status": _status,
    "cancel": _cancel,
    "health": _health,
    "view": _view,
    "batch": _batch,
    "compare": _compare,
    "circuit": _circuit,
    "export": _export,
}


if __name__ == "__main__":
    raise SystemExit(main())
