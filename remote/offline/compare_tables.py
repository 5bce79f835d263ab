"""Print a comparison of graphs, or give it as JSON."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remote.offline.compare import Comparison, Feature, InGraph
from remote.terminal.text import TABLE_STYLE, cut, end_of, line, quoted

_MOST_COLUMNS = 4  # graphs; of more the table says in how many a feature is
_LONGEST_PROMPT = 60
_LONGEST_LABEL = 40
_LABEL_WIDTH = 10  # that a table leaves for labels at least
_GAP = 2  # between columns

Cell = Callable[[InGraph | None], str]


def print_comparison(console: Console, comparison: Comparison, top: int) -> None:
    """The features in common and those that differ, `top` of each; of many graphs what recurs.

    Each graph's column has influence and activation, or where the console is too narrow for both
    the influence alone.
    """
    graphs = comparison.graphs
    if len(graphs) > _MOST_COLUMNS:
        _print_recurring(console, comparison, top)
        return
    console.print()
    for letter, graph in zip(_letters(len(graphs)), graphs, strict=True):
        prompt = quoted(end_of(graph.prompt, _LONGEST_PROMPT))
        words = f"{letter}  {prompt}  {line(str(graph.path))}"
        console.print(words, soft_wrap=True)
    lists = {"In all of them": comparison.common, "Not in all of them": comparison.differing}
    shown = [feature for features in lists.values() for feature in features[:top]]
    cell, words = _cells(shown, console.width, len(graphs))
    console.print(f"\nEach column: {words}")
    for title, features in lists.items():
        console.print(f"\n{_titled(title, features, top)}", soft_wrap=True)
        if features:
            console.print(_columns(features[:top], cell, len(graphs)))


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


def _cells(features: list[Feature], width: int, n_graphs: int) -> tuple[Cell, str]:
    """How a feature in a graph is written, and in words what is."""
    present = [graph for feature in features for graph in feature.present]
    n_share = max((len(f"{graph.influence:.2%}") for graph in present), default=0)
    n_activation = max((len(f"{graph.activation:.2f}") for graph in present), default=0)

    def influence(graph: InGraph | None) -> str:
        return "" if graph is None else f"{graph.influence:>{n_share}.2%}"

    def both(graph: InGraph | None) -> str:
        return "" if graph is None else f"{influence(graph)} {graph.activation:>{n_activation}.2f}"

    n_name = max((len(str(feature.key)) for feature in features), default=0)
    width_of_both = n_name + n_graphs * (_GAP + n_share + 1 + n_activation) + _GAP + _LABEL_WIDTH
    if width_of_both <= width:
        return both, "share of the graph's influence, activation"
    return influence, "share of the graph's influence (activations need a wider terminal)"


def _columns(features: list[Feature], cell: Cell, n_graphs: int) -> Table:
    table = _table("feature", *_letters(n_graphs))
    for feature in features:
        table.add_row(str(feature.key), *map(cell, feature.graphs), _label(feature))
    return table


def _table(*names: str) -> Table:
    """A table whose last column has labels, which are cut where it is too narrow."""
    table = Table(**TABLE_STYLE)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("")
    return table


def _print_recurring(console: Console, comparison: Comparison, top: int) -> None:
    features, n_graphs = comparison.recurring, len(comparison.graphs)
    title = _titled(f"Features that recur over {n_graphs} graphs", features, top)
    table = _table("feature", "graphs", "influence", "activation")
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


def _label(feature: Feature) -> Text:
    return cut(line(feature.label[:_LONGEST_LABEL]))


def _letters(count: int) -> str:
    return "ABCDEFGHIJ"[:count]
