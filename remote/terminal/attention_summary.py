"""What the attention of a complete graph carries from token to token, and why it looks there."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from remote.graphs.document import LORSA, GraphDocument, GraphLink, GraphNode, QKTracing
from remote.graphs.features import own_shares
from remote.graphs.node_names import Names, feature_name, node_name
from remote.terminal.text import TABLE_STYLE, at_token, line

_ROWS, _FEATURES_A_ROW = 6, 6
_TRACES, _CONTRIBUTORS, _PAIRS = 4, 3, 1


@dataclass
class Carried:
    """The Lorsa features that write at one token what they read at another, strongest first."""

    source: int
    target: int
    features: list[GraphNode]
    share: float  # of the influence of all nodes


def print_attention(console: Console, graph: GraphDocument, names: Names) -> None:
    """Which tokens the Lorsa features read and write, and what their attention scores are of."""
    carried = what_is_carried(graph)
    if not carried:
        return
    console.print()
    console.print(_carried_table(graph, carried))
    traced = list(_traced(graph))
    if not traced:
        console.print("\nenable_qk_tracing tells why attention looks there", soft_wrap=True)
        return
    console.print("\nWhy attention looks there (QK tracing)")
    console.print(
        "A head looks from one token (the query) to another (the key) where their score is high.\n"
        "These nodes add most to the score: at the query, at the key, and both together.",
        soft_wrap=True,
    )
    for features, tracing in traced:
        _print_trace(console, graph, features, tracing, names)


def what_is_carried(graph: GraphDocument) -> list[Carried]:
    """The Lorsa features grouped by the token that they read most and the one they write at.

    A feature reads most where the links into it add up to most. Features without such a token are
    left out.
    """
    reads, shares = _read_most(graph), _shares(graph)
    groups: dict[tuple[int, int], Carried] = {}
    for node in graph.features():
        if node.node_id not in reads:
            continue
        place = reads[node.node_id], node.ctx_idx
        group = groups.setdefault(place, Carried(*place, [], 0.0))
        group.features.append(node)
        group.share += shares[node.node_id]
    return sorted(groups.values(), key=lambda group: -group.share)


def _read_most(graph: GraphDocument) -> dict[str, int]:
    """By id, the position that a Lorsa feature reads most."""
    positions = {node.node_id: node.ctx_idx for node in graph.nodes}
    length = len(graph.metadata.prompt_tokens)
    given: dict[str, dict[int, float]] = {n.node_id: defaultdict(float) for n in _lorsas(graph)}
    for raw in graph.links:
        target = raw.get("target") if isinstance(raw, dict) else None
        if isinstance(target, str) and target in given:
            link = GraphLink.model_validate(raw)
            position = positions.get(link.source, -1)
            if 0 <= position < length:
                given[target][position] += link.weight
    most = {name: max(sums, key=lambda p: sums[p]) for name, sums in given.items() if sums}
    return {name: position for name, position in most.items() if given[name][position] > 0}


def _shares(graph: GraphDocument) -> dict[str, float]:
    """By id, the share of influence of each node alone."""
    ids = (node.node_id for node in graph.nodes)
    return dict(zip(ids, own_shares(graph.nodes), strict=True))


def _carried_table(graph: GraphDocument, carried: Sequence[Carried]) -> Table:
    tokens = graph.metadata.prompt_tokens
    table = Table(
        *("from token", "to token", "influence", "Lorsa features (layer/feature)"),
        title="What attention carries",
        **TABLE_STYLE,
    )
    for group in carried[:_ROWS]:
        features = [f"{node.layer}/{node.index}" for node in group.features[:_FEATURES_A_ROW]]
        more = len(group.features) - _FEATURES_A_ROW
        table.add_row(
            at_token(group.source, tokens),
            at_token(group.target, tokens),
            f"{group.share:.1%}",
            line(", ".join(features) + (f" and {more} more" if more > 0 else "")),
        )
    return table


def _lorsas(graph: GraphDocument) -> list[GraphNode]:
    return [node for node in graph.features() if node.feature_type == LORSA]


def _traced(graph: GraphDocument) -> Iterator[tuple[list[GraphNode], QKTracing]]:
    """The strongest trace from each token to each other, with the features that share it."""
    groups: list[tuple[list[GraphNode], QKTracing]] = []
    seen = set()
    for node in _lorsas(graph):
        tracing = node.qk_tracing_results
        if tracing is None or not tracing.top_k_marginal_contributors:
            continue
        for features, other in groups:
            if other == tracing and features[0].ctx_idx == node.ctx_idx:
                features.append(node)
                break
        else:
            place = _key_position(graph, tracing), node.ctx_idx
            if len(groups) < _TRACES and place not in seen:
                seen.add(place)
                groups.append(([node], tracing))
    return iter(groups)


def _node(graph: GraphDocument, name: str) -> GraphNode:
    return graph.by_id.get(name) or GraphNode(feature_type="", node_id=name)


def _key_position(graph: GraphDocument, tracing: QKTracing) -> int:
    """The position that the traced attention looks at: that of all on the key's side."""
    return _node(graph, tracing.top_k_marginal_contributors[0][0]).ctx_idx


def _print_trace(
    console: Console,
    graph: GraphDocument,
    features: Sequence[GraphNode],
    tracing: QKTracing,
    names: Names,
) -> None:
    tokens = graph.metadata.prompt_tokens
    query = at_token(features[0].ctx_idx, tokens)
    key = at_token(_key_position(graph, tracing), tokens)
    shared = [f"{node.layer}/{node.index}" for node in features[:_FEATURES_A_ROW]]
    more = " and others" if len(features) > _FEATURES_A_ROW else ""
    table = Table(show_header=False, **TABLE_STYLE)

    def add(side: str, value: float, *ids: str) -> None:
        nodes = [_node(graph, name) for name in ids]
        words = " with ".join(node_name(node, tokens) for node in nodes)
        label = feature_name(nodes[0], names) if len(nodes) == 1 else ""
        table.add_row(side, f"{value:+.2f}", line(words), line(label))

    for name, value in tracing.top_q_marginal_contributors[:_CONTRIBUTORS]:
        add("query", value, name)
    for name, value in tracing.top_k_marginal_contributors[:_CONTRIBUTORS]:
        add("key", value, name)
    for q_name, k_name, value in tracing.pair_wise_contributors[:_PAIRS]:
        add("both", value, q_name, k_name)
    words = f"\nfrom {query} to {key}: Lorsa {line(', '.join(shared))}{more}"
    console.print(words, soft_wrap=True)
    console.print(table)
