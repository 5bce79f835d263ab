"""Print what experiments on groups of features did: to the next token, and to the groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from remote.terminal.text import TABLE_STYLE, cut, line, quoted
from schemas import InterveneResponse, InterventionOutcome

# Experiments side by side, with room for a group's name in 80 columns.
_COLUMNS = 8

_TITLE = "Activations, % of the baseline"

Experiments = Sequence[Sequence[Mapping[str, Any]]]


def print_intervene(
    console: Console, output: InterveneResponse, experiments: Experiments | None = None
) -> None:
    """A row for each experiment, with its likeliest next token and the targets' probabilities;
    below, a row for each group, with its activation under each experiment in per cent of what it
    is without.

    Args:
        experiments: as they were asked for, to say what each of them changes.
    """
    rows = [output.baseline, *output.experiments]
    targets = list(dict.fromkeys(t.token for row in rows for t in row.targets))
    said = ["nothing", *map(_changes, experiments)] if experiments else []
    changes = ("changed",) if said else ()
    table = Table(title="Experiments", **TABLE_STYLE)
    for name in ("", *changes, "next token", "", *map(quoted, targets)):
        table.add_column(cut(name), no_wrap=name not in changes, justify="left")
    for n, row in enumerate(rows):
        what = [said[n] if n < len(said) else ""] if said else []
        table.add_row(str(n) if n else "", *what, *_likeliest(row), *_of_targets(row, targets))
    console.print()
    console.print(table)
    for first in range(0, len(output.experiments), _COLUMNS):
        console.print()
        console.print(_activations(output, first))


def _activations(output: InterveneResponse, first: int) -> Table:
    """The groups' activations under some experiments, from the one of this index on."""
    shown = output.experiments[first : first + _COLUMNS]
    table = Table(title=_TITLE, min_width=len(_TITLE), **TABLE_STYLE)
    table.add_column("group")
    for n in range(first, first + len(shown)):
        table.add_column(str(n + 1), justify="right", no_wrap=True)
    for name in output.baseline.groups:
        table.add_row(cut(line(name)), *(_share(row.groups.get(name)) for row in shown))
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.0f}"


def _likeliest(row: InterventionOutcome) -> tuple[str, str]:
    if not row.top:
        return "", ""
    return quoted(row.top[0].token), f"{row.top[0].probability:.4f}"


def _of_targets(row: InterventionOutcome, targets: Sequence[str]) -> list[str]:
    probabilities = {target.token: f"{target.probability:.4f}" for target in row.targets}
    return [probabilities.get(token, "") for token in targets]


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    """What an experiment changes, in words."""
    return ", ".join(map(_change, changes)) or "nothing"


def _change(change: Mapping[str, Any]) -> str:
    name = line(str(change["group"]))
    if change.get("value") is not None:
        return f"{name} = {change['value']:g}"
    return f"{name} off" if change["scale"] == 0 else f"{name} × {change['scale']:g}"
