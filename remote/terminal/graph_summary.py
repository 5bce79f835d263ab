"""Print what is in a graph on a terminal: predictions, features, sizes and scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from remote.graphs.document import (
    EMBEDDING,
    ERROR,
    FEATURE,
    LOGIT,
    LORSA,
    LORSA_ERROR,
    GraphDocument,
)
from remote.graphs.features import strongest
from remote.graphs.node_names import KIND_NAMES, Names, feature_name, feature_names, name_of
from remote.terminal import attention_summary
from remote.terminal.prompt_hint import DEMO, hint
from remote.terminal.text import (
    TABLE_STYLE,
    cut,
    end_of,
    line,
    print_hint,
    print_named,
    quoted,
    shown,
    size,
    stages,
)
from viewer import demo_features

if TYPE_CHECKING:
    from remote.labels.labels import Labels

_COUNTED = {FEATURE: "feature", ERROR: "error", EMBEDDING: "token", LOGIT: "logit"}
_COUNTED_IF_COMPLETE = {
    FEATURE: "transcoder feature",
    LORSA: "Lorsa feature",
    ERROR: "MLP error",
    LORSA_ERROR: "attention error",
    EMBEDDING: "token",
    LOGIT: "logit",
}

_LONGEST_PROMPT = 400
STRONGEST = 8  # features, in the table of these
_NAMED = 100  # strongest features, whose names the tables show where they are known


def print_graph(
    console: Console, graph: dict[str, Any], path: Path, labels: "Labels | None" = None
) -> None:
    """A graph's predictions, strongest features, sizes and scores, and the file it is in. Of a
    complete one also what attention carries, and why it looks where it looks.

    Args:
        labels: where features' names come from that aren't the demo's; None: from nowhere.

    Raises:
        ValidationError: it is not as graph documents are.
    """
    document = GraphDocument.model_validate(graph)
    metadata = document.metadata
    wanted = [name_of(node) for _, node in strongest(document.nodes)[:_NAMED]]
    names = feature_names(graph["metadata"], wanted, labels)
    prompt = shown(end_of(metadata.prompt, _LONGEST_PROMPT))
    console.print(f"\n[bold]{prompt}[/bold]  ({line(metadata.scan)})\n")
    console.print(_predictions(document))
    print_hint(console, _hint(document, graph["metadata"]))
    console.print()
    console.print(_strongest_features(document, names))
    if document.is_complete:
        attention_summary.print_attention(console, document, names)

    kinds = _COUNTED_IF_COMPLETE if document.is_complete else _COUNTED
    counts = {kind: len(document.of_type(kind)) for kind in kinds}
    shares = ", ".join(
        f"{count} {kinds[kind]}{'' if count == 1 else 's'}" for kind, count in counts.items()
    )
    scores = metadata.graph_scores
    console.print()
    print_named(console, "nodes   ", f"{len(document.nodes)}: {shares}")
    console.print(
        f"links   {len(document.links)}"
        f"\nscores  replacement {scores.replacement_score:.3f}, "
        f"completeness {scores.completeness_score:.3f}"
        f"\ngraph   {line(str(path))} ({size(path.stat().st_size)})",
        soft_wrap=True,
    )
    print_named(console, "stages  ", stages(metadata.info.timings_ms))


def _predictions(graph: GraphDocument) -> Table:
    """The tokens that a graph explains, or the targets that were asked for."""
    if graph.metadata.attribution_targets is None:
        table = Table("next token", "probability", title="Likeliest next tokens", **TABLE_STYLE)
    else:
        table = Table("target", "weight", title="Attribution targets", **TABLE_STYLE)
    for node in graph.of_type(LOGIT):
        label = (node.clerp or "").removeprefix("Output ").removeprefix("Logit ")
        table.add_row(line(label.rsplit(" (p=", 1)[0]), f"{node.token_prob:.4f}")
    return table


def _hint(graph: GraphDocument, metadata: dict[str, Any]) -> str | None:
    asked_for = graph.metadata.attribution_targets is not None
    probabilities = [] if asked_for else [node.token_prob for node in graph.of_type(LOGIT)]
    model = DEMO if demo_features.is_of_demo(metadata) else None
    return hint(max(probabilities, default=None), graph.metadata.prompt_tokens, model)


def _strongest_features(graph: GraphDocument, names: Names) -> Table:
    """The features with the most influence on the logits: their kind in a complete graph, where
    they are as --feature takes it, their own share of the influence, and what is known of them."""
    tokens = graph.metadata.prompt_tokens
    kind = ("kind",) if graph.is_complete else ()
    name = ("what it does",) if names else ()
    table = Table(title="Strongest features", **TABLE_STYLE)
    for column in (*kind, "feature", "at token", "activation", "influence", *name):
        # On a narrow terminal the token and the name are cut, and never a number.
        table.add_column(cut(column), no_wrap=column not in {"at token", *name})
    for share, node in strongest(graph.nodes)[:STRONGEST]:
        table.add_row(
            *((KIND_NAMES[node.feature_type],) if kind else ()),
            line(f"{node.layer}:{node.index}:{node.ctx_idx}"),
            cut(quoted(tokens[node.ctx_idx])),
            f"{node.activation:.2f}",
            f"{share:.1%}",
            *((cut(line(feature_name(node, names))),) if name else ()),
        )
    return table
