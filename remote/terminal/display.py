"""A job's progress on a terminal as a bar, elsewhere as a line now and then.

A streamed steer is shown in the same place: its texts as they grow, or a line for each token.
"""

from collections.abc import Iterable
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from remote.jobs import Progress
from remote.terminal.summary import side_by_side
from remote.terminal.text import line, quoted, shown, text_of
from schemas import SteerPart

_LINE_EVERY_S = 10.0
# Estimates of the remaining time before this share, or of the last moment, would be wild.
_FIRST_SHARE, _LAST_SHARE = 0.02, 0.999
_WHOLE_JOB_S = 24 * 3600.0


class _BarsAndTexts(Bars):
    """Progress bars, and below them the texts of a streamed steer as far as they have come."""

    def __init__(self, *columns: ProgressColumn, **settings: Any) -> None:
        self.tokens: dict[str, list[str]] = {}  # by side; set first, for rich renders at once
        super().__init__(*columns, **settings)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.tokens:
            default, steered = (self.tokens.get(side, []) for side in ("default", "steered"))
            yield side_by_side(shown(text_of(default)), shown(text_of(steered)))


class Display:
    """Shows each `Progress` that it is called with. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _BarsAndTexts(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[share]:>4}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[remaining]}", style="cyan", table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[note]}",
                style="dim",
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=_WHOLE_JOB_S,
        )
        self._bars.add_task("connecting", total=None, share="", remaining="", note="")
        self._job_id: str | None = None
        self._line: tuple[str, float] = ("", 0.0)  # the last line's stage and time

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.job_id is not None and self._job_id is None:
            self._job_id = progress.job_id
            self._console.print(f"job {line(progress.job_id)}", style="dim", soft_wrap=True)
        [task] = self._bars.tasks
        share = "" if progress.share is None else f"{progress.share:.0%}"
        self._bars.update(
            task.id,
            description=line(progress.stage),
            total=None if progress.share is None else 1.0,
            # rich stops a task's clock at its total, and a download may follow.
            completed=min(progress.share or 0.0, _LAST_SHARE),
            share=share,
            note=line(progress.message),
        )
        self._bars.update(task.id, remaining=_remaining(task))
        if self._bars.disable:
            self._print_line(task, progress, share)

    def add_part(self, part: SteerPart) -> None:
        """Show a token of a streamed steer: on a terminal in its side's text, else as a line."""
        if self._bars.disable:
            words = f"{part.side}  {part.position}  {quoted(part.token)}"
            self._console.print(words, soft_wrap=True)
            return
        self._bars.tokens.setdefault(part.side, []).append(part.token)
        self._bars.refresh()

    def _print_line(self, task: Task, progress: Progress, share: str) -> None:
        """Print a line for a new stage, and in a long stage every ten seconds."""
        elapsed_s = task.elapsed or 0.0
        stage, printed_s = self._line
        if progress.stage == stage and elapsed_s - printed_s < _LINE_EVERY_S:
            return
        self._line = (progress.stage, elapsed_s)
        parts = (progress.stage, share, _remaining(task), progress.message)
        words = f"{duration(elapsed_s):>6}  {line(', '.join(part for part in parts if part))}"
        self._console.print(words, soft_wrap=True)


def _remaining(task: Task) -> str:
    """The estimated time until the job's end in words; empty when there is no estimate."""
    seconds = task.time_remaining if _FIRST_SHARE < task.completed < _LAST_SHARE else None
    return "" if seconds is None else f"about {duration(max(seconds, 1))} left"


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 2:05 min, 1:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
