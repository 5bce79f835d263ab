"""A batch's progress: on a terminal as a table that changes, elsewhere as a line for each row."""

import time
from collections import Counter
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from remote.batch.running import Event
from remote.terminal.display import duration
from remote.terminal.text import end_of, line, quoted

_MOST_RUNNING = 12  # rows of the table
_BAR_WIDTH = 28
_LONGEST_PROMPT = 40
_LONGEST_ERROR = 160
_LEAST_DONE = 3  # rows, before the rest is estimated


class BatchDisplay:
    """Shows the events that it is called with. A context manager.

    Args:
        total: rows of the file with a graph of their own.
        done, failed: those of them that earlier runs left so.
    """

    def __init__(self, console: Console, *, total: int, done: int, failed: int) -> None:
        self._console = console
        self._total = total
        self._counts: Counter[str] = Counter(done=done, failed=failed)
        self._finished_now = 0
        self._running: dict[str, tuple[Event, float]] = {}  # by name, with when it began
        self._started = time.monotonic()
        self._live = Live(console=console, transient=True, get_renderable=self._table)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        name = event.row.name
        if event.state == "running":
            _, began = self._running.get(name, (event, time.monotonic()))
            self._running[name] = event, began
            return
        self._running.pop(name, None)
        if event.state == "open":
            self._print(event, f"not reached: {event.error}")
            return
        self._counts[event.state] += 1
        self._finished_now += 1
        record = event.record
        if event.state == "failed" and record is not None:
            self._print(event, f"{record.code}: {record.error}")
        elif not self._console.is_terminal:
            summary = None if record is None else record.summary
            first = summary.predictions[0] if summary and summary.predictions else None
            words = "" if first is None else f'"{first.token}" {first.probability:.4f}'
            self._print(event, words)

    def _print(self, event: Event, words: str) -> None:
        finished = self._counts["done"] + self._counts["failed"]
        width = len(str(self._total))
        self._console.print(
            f"{finished:>{width}}/{self._total}  {event.state:<6}  {line(event.row.name)}"
            f"  {line(words[:_LONGEST_ERROR])}",
            soft_wrap=True,
        )

    def _table(self) -> RenderableType:
        done, failed = self._counts["done"], self._counts["failed"]
        waiting = self._total - done - failed - len(self._running)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(self._total, done + failed, width=_BAR_WIDTH),
            f"{done + failed} of {self._total}",
            f"[red]{failed} failed[/red]" if failed else "none failed",
            f"{len(self._running)} in flight, {max(waiting, 0)} waiting",
            f"[cyan]{self._remaining()}[/cyan]",
        )
        table = Table("prompt", "stage", "", "since", box=None, padding=(0, 2, 0, 0))
        for event, began in list(self._running.values())[:_MOST_RUNNING]:
            progress = event.progress
            share = progress.share if progress else None
            table.add_row(
                quoted(end_of(event.row.prompt, _LONGEST_PROMPT)),
                line(progress.stage if progress else ""),
                "" if share is None else f"{share:.0%}",
                duration(time.monotonic() - began),
            )
        more = len(self._running) - _MOST_RUNNING
        return Group(head, table, f"and {more} more in flight" if more > 0 else "")

    def _remaining(self) -> str:
        left = self._total - self._counts["done"] - self._counts["failed"]
        if self._finished_now < _LEAST_DONE or not left:
            return ""
        seconds = (time.monotonic() - self._started) / self._finished_now * left
        return f"about {duration(max(seconds, 1))} left"
