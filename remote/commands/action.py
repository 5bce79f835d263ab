"""The commands that do an action of the worker, and `client.py wait`."""

import time
from argparse import Namespace
from pathlib import Path

import orjson
from pydantic import ValidationError
from rich.console import Console

from remote.client import Client
from remote.commands.connecting import connect, labels_for
from remote.commands.graph_groups import of_same_model, warn_of_inactive
from remote.commands.output_files import OUTPUT_DIRECTORY, torch_file_name, write_graph
from remote.errors import NotTheGraph, RemoteError
from remote.labels.labels import Labels
from remote.terminal import summary
from remote.terminal.display import Display
from remote.terminal.graph_summary import print_graph
from remote.terminal.json_output import print_json
from remote.terminal.label_examples import print_examples
from remote.terminal.text import line
from remote.torch_file import is_torch_file, wants_file
from schemas import parse_request

_LARGEST_SUMMARISED_BYTES = 300_000_000


def run(args: Namespace, out: Console, err: Console) -> None:
    """Do an action, or wait for a job that was sent before, and print the output."""
    started = time.monotonic()
    if hasattr(args, "job"):
        parse_request(args.job)  # what is wrong with it is said even if no server answers
    if args.command == "graph" and wants_file(args.job):
        _save(args, out, err, started)
        return
    with connect(args) as client, Display(err) as display:
        if args.endpoint is not None and args.command == "graph" and "signed_url" not in args.job:
            words = "without --signed-url Runpod carries graphs of up to 10 MB"
            err.print(words, style="dim", soft_wrap=True)
        if args.command == "wait":
            output = client.wait(args.job_id, display, args.timeout)
        else:
            on_part = display.add_part if args.job.get("stream") else None
            with of_same_model(args, client):
                output = client.run(args.job, display, args.timeout, on_part)
        path = write_graph(args, output, display)
        model = _model(client) if args.command == "forward-pass" and not args.json else None
    warn_of_inactive(args, output, err)
    if args.json:
        print_json(output)
        return
    with labels_for(args, err) as labels:
        experiments = args.job.get("experiments") if hasattr(args, "job") else None
        summary.print_output(out, output, path, model, labels, experiments)
        if labels is not None and "nodes" in output:
            print_examples(out, output, labels)
        if "sha256" in output and path is not None:
            out.print(f"file    {line(str(path))}, its SHA-256 is right", soft_wrap=True)
            if is_torch_file(path):
                summary.print_torch_file(out, path)
            elif path.stat().st_size <= _LARGEST_SUMMARISED_BYTES:
                _summarise(out, path, labels)
    if args.command != "wait":
        out.print(f"time    {time.monotonic() - started:.1f} s")


def _save(args: Namespace, out: Console, err: Console, started: float) -> None:
    """Have a graph's file written as it comes, and say what it is."""

    def place(name: str) -> Path:
        path: Path | None = args.output
        return path or OUTPUT_DIRECTORY / torch_file_name(name)

    with connect(args) as client, Display(err) as display:
        path = client.run_to_file(args.job, place, display, args.timeout)
    if args.json:
        print_json({"file": str(path), "bytes": path.stat().st_size})
        return
    summary.print_torch_file(out, path)
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
