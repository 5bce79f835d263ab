"""A job's progress on a terminal: a bar, or now and then a line where there is no terminal."""

import time
from abc import ABC, abstractmethod
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from remote.jobs import Progress

_LINE_EVERY_S = 10.0
# Before this much is known, a guess of the time left would jump about.
_FIRST_SHARE = 0.02
_FIRST_S = 1.0


class Display(ABC):
    """Shows `Progress` as it comes. A context manager, to be called with each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None  # time and share of the first share
        self._job_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - lines have nothing to close
        pass

    def __call__(self, progress: Progress) -> None:
        if progress.job_id is not None and self._job_id is None:
            self._job_id = progress.job_id
            self._console.print(f"job {escape(progress.job_id)}", style="dim", soft_wrap=True)
        self._show(progress, self._end(progress.share))

    @abstractmethod
    def _show(self, progress: Progress, end: float | None) -> None:
        """Show it; `end` is the `time.monotonic()` at which the job is expected to end."""

    def _end(self, share: float | None) -> float | None:
        """The `time.monotonic()` of the end, if the rest goes as what was seen of it."""
        now = time.monotonic()
        if share is None:
            return None
        if self._first is None or share < self._first[1]:
            self._first = (now, share)
        since, first_share = self._first
        if share - first_share < _FIRST_SHARE or now - since < _FIRST_S or share >= 1:
            return None
        return now + (now - since) * (1 - share) / (share - first_share)


class Lines(Display):
    """A line for each stage, and in a long one every ten seconds."""

    _shown = ""
    _shown_at = -_LINE_EVERY_S

    def _show(self, progress: Progress, end: float | None) -> None:
        now = time.monotonic() - self._started
        if progress.stage == self._shown and now - self._shown_at < _LINE_EVERY_S:
            return
        self._shown, self._shown_at = progress.stage, now
        share = None if progress.share is None else f"{progress.share:.0%}"
        parts = (progress.stage, share, left_in_words(end), progress.message)
        line = f"{duration(now):>6}  {', '.join(part for part in parts if part)}"
        self._console.print(line, soft_wrap=True, markup=False)


class _LeftColumn(ProgressColumn):
    """The time left, counted down between one poll and the next."""

    def render(self, task: Task) -> Text:
        return Text(left_in_words(task.fields["end"]), style="cyan")


class Bar(Display):
    """A bar with stage, share, time taken and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[share]:>4}"),
            TimeElapsedColumn(),
            _LeftColumn(table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[note]}",
                style="dim",
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("connecting", total=None, share="", end=None, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _show(self, progress: Progress, end: float | None) -> None:
        self._bars.update(
            self._task,
            description=escape(progress.stage),
            total=None if progress.share is None else 1.0,
            completed=progress.share or 0.0,
            share="" if progress.share is None else f"{progress.share:.0%}",
            end=end,
            note=escape(progress.message),
        )


def display(console: Console) -> Display:
    """The display that suits where `console` writes."""
    return Bar(console) if console.is_terminal else Lines(console)


def left_in_words(end: float | None) -> str:
    """The time until `end`, a `time.monotonic()`; empty when that isn't known."""
    return "" if end is None else f"about {duration(max(end - time.monotonic(), 1))} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 2:05 min, 1:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
