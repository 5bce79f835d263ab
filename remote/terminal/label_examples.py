"""Print where a graph's strongest features fire, as Neuronpedia's examples show it."""

from typing import Any

from rich.console import Console
from rich.table import Table

from remote.graphs.document import GraphDocument
from remote.graphs.features import strongest
from remote.graphs.node_names import KIND_NAMES, name_of
from remote.labels.labels import Labels
from remote.terminal.graph_summary import STRONGEST
from remote.terminal.text import TABLE_STYLE, line
from viewer import demo_features
from viewer.descriptions import Example

_BEFORE, _AFTER = 50, 30  # characters around the token on which a feature fires


def print_examples(console: Console, graph: dict[str, Any], labels: Labels) -> None:
    """The strongest example of each of the strongest features; nothing where there is none.

    Args:
        graph: a document that was found to be as graph documents are.
    """
    document = GraphDocument.model_validate(graph)
    metadata = graph["metadata"]
    if demo_features.is_of_demo(metadata) and not metadata.get("feature_details"):
        return  # Neuronpedia has none of its features
    nodes = {name_of(node): node for _, node in strongest(document.nodes)[:STRONGEST]}
    descriptions = labels.descriptions(graph["metadata"], nodes)
    table = Table(show_header=False, **TABLE_STYLE)
    for name, description in descriptions.items():
        if description.examples:
            node = nodes[name]
            kind = (KIND_NAMES[node.feature_type],) if document.is_complete else ()
            place = line(f"{node.layer}/{node.index}")
            table.add_row(*kind, place, _text(description.examples[0]))
    if table.row_count:
        console.print("\nWhere they fire most, among Neuronpedia's texts")
        console.print(table)


def _text(example: Example) -> str:
    """What surrounds an example's peak, on one line, with the peak in bold."""
    tokens, peak = example.tokens, example.peak
    before, after = "".join(tokens[:peak]), "".join(tokens[peak + 1 :])
    shown = [before[-_BEFORE:], tokens[peak], after[:_AFTER]]
    if len(before) > _BEFORE:
        shown[0] = f"…{shown[0]}"
    if len(after) > _AFTER:
        shown[2] += "…"
    first, token, last = map(line, shown)
    return f"{first}[bold]{token}[/bold]{last}"
