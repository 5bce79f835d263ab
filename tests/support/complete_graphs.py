"""A complete replacement model's attribution graph in plain numpy, and the committed ones.

    theirs = fixture("glu-9")          what llamascopium 2.0.0b34 makes of CASES["glu-9"]
    assert_same_graph(ours, theirs)    ours: a PlainGraph of the engine's result

Sublayer `2l` is the attention of layer l (its features are a Lorsa's), `2l + 1` its MLP (a
transcoder's), -1 the embedding and `2 N_LAYERS` the logits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIXTURES = Path(__file__).parents[1] / "complete_fixtures"
KINDS = ("embedding", "error", "feature", "logit", "bias_q", "bias_k", "bias_d")


class Node(NamedTuple):
    """A node's name, which says what it is without a graph at hand."""

    kind: str  # one of KINDS
    sublayer: int
    position: int
    # Of a feature in its module, of a token in the vocabulary; -1 for errors and biases.
    index: int  # type: ignore[assignment]


Weighted = tuple[Node, float]
Pair = tuple[Node, Node, float]


@dataclass(frozen=True)
class Trace:
    """What QK tracing gives for one Lorsa feature: lists with the largest value first."""

    q_marginal: list[Weighted]
    k_marginal: list[Weighted]
    pairs: list[Pair]  # the query's side, the key's side, the value


@dataclass(frozen=True)
class PlainGraph:
    """An attribution before pruning, which links pruning keeps, and QK tracing.

    Attributes:
        input_ids: (n_pos,) of the prompt.
        logits: the targets, the likeliest first: `Node("logit", 2 * N_LAYERS, n_pos - 1, token)`.
        logit_values: (n_logits,), less the mean over the vocabulary: what the rows are about.
        probabilities: (n_logits,).
        active: every active feature, with its activation.
        selected: the selected features in the order of their selection.
        columns: the adjacency's columns: embeddings, errors, selected features.
        adjacency: (n_logits + n_selected, n_columns) float32. Its rows are `logits + selected`.
        links: (target, source) of each link that pruning keeps.
        traces: by Lorsa feature.
    """

    input_ids: list[int]
    logits: list[Node]
    logit_values: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    active: dict[Node, float]
    selected: list[Node]
    columns: list[Node]
    adjacency: NDArray[np.float32]
    links: set[tuple[Node, Node]]
    traces: dict[Node, Trace]

    @property
    def rows(self) -> list[Node]:
        return self.logits + self.selected


def fixture(name: str) -> PlainGraph:
    """What llamascopium makes of `CASES[name]`."""
    return read(fixture_path(name))


def fixture_path(name: str) -> Path:
    return FIXTURES / "graphs" / f"{name}.npz"


def read(path: Path) -> PlainGraph:
    with np.load(path) as arrays:
        return _unpacked(arrays)


def save(graph: PlainGraph, path: Path) -> None:
    """Write a graph for `read`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **_packed(graph))


def assert_same_graph(ours: PlainGraph, theirs: PlainGraph, *, tolerance: float = 1e-6) -> None:
    """Compare a graph with the reference, in whatever order its columns are.

    Args:
        ours: the graph to judge.
        theirs: the reference.
        tolerance: the largest difference of an adjacency's entry, by the largest entry.
    """
    assert ours.input_ids == theirs.input_ids
    assert ours.logits == theirs.logits
    _assert_close(ours.logit_values, theirs.logit_values, 1e-5)
    _assert_close(ours.probabilities, theirs.probabilities, 1e-5)
    assert ours.active.keys() == theirs.active.keys()
    _assert_close([ours.active[node] for node in theirs.active], list(theirs.active.values()), 1e-5)
    assert ours.selected == theirs.selected
    assert set(ours.columns) == set(theirs.columns)
    assert len(ours.columns) == len(theirs.columns)
    place = {node: column for column, node in enumerate(ours.columns)}
    in_order = ours.adjacency[:, [place[node] for node in theirs.columns]]
    _assert_close(in_order, theirs.adjacency, tolerance)
    assert ours.links == theirs.links
    assert_same_traces(ours.traces, theirs.traces)


def assert_same_traces(
    ours: dict[Node, Trace], theirs: dict[Node, Trace], *, tolerance: float = 2e-5
) -> None:
    """Compare what QK tracing gives: the same nodes in the same order, with the same values.

    Args:
        ours: the traces to judge.
        theirs: the reference.
        tolerance: the largest difference of a value, by the largest value of its list.
    """
    assert ours.keys() == theirs.keys()
    for target, trace in theirs.items():
        for kind in ("q_marginal", "k_marginal", "pairs"):
            got, expected = getattr(ours[target], kind), getattr(trace, kind)
            assert [entry[:-1] for entry in got] == [entry[:-1] for entry in expected], target
            _assert_close([e[-1] for e in got], [e[-1] for e in expected], tolerance)


def _assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    if theirs.size:
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert difference < tolerance, f"{difference:.1e} of the largest value"


# The arrays of a file. A list of nodes is an int16 matrix; values stand in an array beside it. Of
# the adjacency only entries that are not 0 are there, with their places as bits.


def _packed(graph: PlainGraph) -> dict[str, Any]:
    entries = graph.adjacency != 0
    row = {node: place for place, node in enumerate(graph.rows)}
    column = {node: place for place, node in enumerate(graph.columns)}
    kept = np.zeros_like(entries)
    for target, source in graph.links:
        kept[row[target], column[source]] = True
    assert not (kept & ~entries).any(), "a link without a weight"
    arrays = {
        "input_ids": np.array(graph.input_ids, np.int16),
        "logits": _as_array(graph.logits),
        "logit_values": graph.logit_values,
        "probabilities": graph.probabilities,
        "active": _as_array(graph.active),
        "activations": np.array(list(graph.active.values()), np.float32),
        "selected": _as_array(graph.selected),
        "columns": _as_array(graph.columns),
        "entries": np.packbits(entries),
        "weights": graph.adjacency[entries],
        "kept": np.packbits(kept[entries]),
        "targets": _as_array(graph.traces),
    }
    traces = list(graph.traces.values())
    for kind in ("q_marginal", "k_marginal", "pairs"):
        lists = [getattr(trace, kind) for trace in traces]
        entries_of_all = [entry for entries in lists for entry in entries]
        arrays[f"{kind}_lengths"] = np.array([len(entries) for entries in lists], np.int16)
        arrays[f"{kind}_values"] = np.array([e[-1] for e in entries_of_all], np.float32)
        arrays[f"{kind}_nodes"] = _as_array(node for entry in entries_of_all for node in entry[:-1])
    return arrays


def _unpacked(arrays: Any) -> PlainGraph:
    logits, selected, columns = (_as_nodes(arrays[k]) for k in ("logits", "selected", "columns"))
    shape = len(logits) + len(selected), len(columns)
    entries = _bits(arrays["entries"], shape[0] * shape[1]).reshape(shape)
    adjacency = np.zeros(shape, np.float32)
    adjacency[entries] = arrays["weights"]
    kept = np.argwhere(entries)[_bits(arrays["kept"], int(entries.sum()))]
    rows = logits + selected
    lists = {}
    for kind, n_nodes in (("q_marginal", 1), ("k_marginal", 1), ("pairs", 2)):
        nodes, values = _as_nodes(arrays[f"{kind}_nodes"]), arrays[f"{kind}_values"].tolist()
        flat = [(*nodes[n_nodes * i : n_nodes * (i + 1)], value) for i, value in enumerate(values)]
        ends = np.cumsum(arrays[f"{kind}_lengths"]).tolist()
        lists[kind] = [
            flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if ends
        ]
    return PlainGraph(
        input_ids=arrays["input_ids"].tolist(),
        logits=logits,
        logit_values=arrays["logit_values"],
        probabilities=arrays["probabilities"],
        active=dict(zip(_as_nodes(arrays["active"]), arrays["activations"].tolist(), strict=True)),
        selected=selected,
        columns=columns,
        adjacency=adjacency,
        links={(rows[row], columns[column]) for row, column in kept.tolist()},
        traces={
            target: Trace(lists["q_marginal"][i], lists["k_marginal"][i], lists["pairs"][i])
            for i, target in enumerate(_as_nodes(arrays["targets"]))
        },
    )


def _as_array(nodes: Iterable[Node]) -> NDArray[np.int16]:
    rows = [(KINDS.index(node.kind), *node[1:]) for node in nodes]
    # Columns of equal numbers compress better than rows of unequal ones.
    return np.asfortranarray(np.array(rows, np.int16).reshape(-1, 4))


def _as_nodes(array: NDArray[np.int16]) -> list[Node]:
    return [Node(KINDS[kind], *rest) for kind, *rest in array.tolist()]


def _bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, count=count).astype(bool)
