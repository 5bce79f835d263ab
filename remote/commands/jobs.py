"""`client.py status`, `cancel` and `health`: a job that was sent before, and the server."""

from argparse import Namespace
from typing import Any

from rich.console import Console

from remote.commands.connecting import connect
from remote.jobs import JobStatus
from remote.terminal.display import duration
from remote.terminal.json_output import print_json
from remote.terminal.text import line

_WIDEST_NAME = 30  # of a row's


def show_status(args: Namespace, out: Console, _err: Console) -> None:
    with connect(args) as client:
        status = client.status(args.job_id)
    _print_rows(args, out, vars(status), _status_rows(status))


def cancel(args: Namespace, out: Console, _err: Console) -> None:
    with connect(args) as client:
        client.cancel(args.job_id)
    out.print(f"job {line(args.job_id)} is cancelled", soft_wrap=True)


def show_health(args: Namespace, out: Console, _err: Console) -> None:
    with connect(args) as client:
        health = client.health()
    _print_rows(args, out, health, health)


def _print_rows(
    args: Namespace, out: Console, output: dict[str, Any], rows: dict[str, Any]
) -> None:
    """Print the rows as a table, or with `--json` the output."""
    if args.json:
        print_json(output)
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
