"""Print a comparison of graphs, or give it as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from remote.offline.compare import Comparison, Feature, InGraph
from remote.terminal.text import TABLE_STYLE, line, quoted

_MOST_COLUMNS = 4  # graphs; of more the table says in how many a feature is
_LONGEST_PROMPT = 60
_LONGEST_LABEL = 40


def print_comparison(console: Console, comparison: Comparison, top: int) -> None:
    """The features in common and those that differ, `top` of each; of many graphs what recurs."""
    graphs = comparison.graphs
    if len(graphs) > _MOST_COLUMNS:
        _print_recurring(console, comparison, top)
        return
    console.print()
    for letter, graph in zip(_letters(len(graphs)), graphs, strict=True):
        prompt = graph.prompt[:_LONGEST_PROMPT]
        words = f"{letter}  {quoted(prompt)}  {line(str(graph.path))}"
        console.print(words, soft_wrap=True)
    _print_columns(console, "In all of them", comparison.common, top, len(graphs))
    _print_columns(console, "Not in all of them", comparison.differing, top, len(graphs))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, in the form that `--json` prints."""
    return {
        "graphs": [
            {"file": str(graph.path), "slug": graph.slug, "prompt": graph.prompt}
            for graph in comparison.graphs
        ],
        "common": [_fields(feature) for feature in comparison.common],
        "differing": [_fields(feature) for feature in comparison.differing],
        "recurring": [_fields(feature) for feature in comparison.recurring],
    }


def _fields(feature: Feature) -> dict[str, Any]:
    return {
        **asdict(feature.key),
        "n_graphs": len(feature.present),
        "influence": feature.influence,
        "activation": feature.activation,
        "label": feature.label,
        "graphs": [None if graph is None else asdict(graph) for graph in feature.graphs],
    }


def _print_columns(
    console: Console, title: str, features: list[Feature], top: int, n_graphs: int
) -> None:
    columns = [
        f"{letter} {name}" for letter in _letters(n_graphs) for name in ("influence", "activation")
    ]
    table = Table("feature", *columns, "", **TABLE_STYLE)
    for feature in features[:top]:
        cells = (cell for graph in feature.graphs for cell in _cells(graph))
        table.add_row(str(feature.key), *cells, _label(feature))
    console.print(f"\n{_titled(title, features, top)}", soft_wrap=True)
    if features:
        console.print(table)


def _print_recurring(console: Console, comparison: Comparison, top: int) -> None:
    features, n_graphs = comparison.recurring, len(comparison.graphs)
    title = _titled(f"Features that recur over {n_graphs} graphs", features, top)
    table = Table("feature", "graphs", "influence", "activation", "", **TABLE_STYLE)
    for feature in features[:top]:
        table.add_row(
            str(feature.key),
            f"{len(feature.present)} ({len(feature.present) / n_graphs:.0%})",
            f"{feature.influence:.2%}",
            f"{feature.activation:.2f}",
            _label(feature),
        )
    console.print(f"\n{title}", soft_wrap=True)
    console.print(table)
    console.print(f"\nin all  {len(comparison.common)} features")


def _titled(title: str, features: list[Feature], top: int) -> str:
    shown = min(top, len(features))
    return f"{title}: {len(features)}" + (f", the strongest {shown}" if shown else "")


def _cells(graph: InGraph | None) -> tuple[str, str]:
    return ("", "") if graph is None else (f"{graph.influence:.2%}", f"{graph.activation:.2f}")


def _label(feature: Feature) -> str:
    return line(feature.label[:_LONGEST_LABEL])


def _letters(count: int) -> str:
    return "ABCDEFGHIJ"[:count]
