"""The committed graphs and documents of complete replacement models, and how they are compared."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import complete_documents, complete_graphs
from tests.support.complete_cases import CASES, N_LAYERS, VARIANTS, write_case
from tests.support.complete_demo import DEMO_CASES
from tests.support.complete_documents import Document, assert_same_document, node_id
from tests.support.complete_graphs import PlainGraph, Trace, assert_same_graph, fixture

_CASE = "no-rotary-12"


def test_there_are_21_cases_two_of_the_demo_and_a_fixture_of_each() -> None:
    assert (len(CASES), len(DEMO_CASES)) == (21, 2)
    names = {path.stem for path in complete_graphs.FIXTURES.glob("graphs/*.npz")}
    assert names == CASES.keys() | DEMO_CASES.keys()


def test_the_fixtures_take_a_few_hundred_kilobytes() -> None:
    files = [path for path in complete_graphs.FIXTURES.rglob("*.[ng]*z") if path.is_file()]
    assert len(files) == 27
    assert sum(path.stat().st_size for path in files) < 700_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_case_has_a_model_and_two_modules_for_each_of_its_layers(
    variant: str, tmp_path: Path
) -> None:
    folders = write_case(tmp_path, CASES[f"{variant}-6"])
    names = {path.name for path in folders.model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    for layer in range(N_LAYERS):
        for kind in ("transcoder", "lorsa"):
            files = {path.name for path in folders.module(kind, layer).iterdir()}
            assert files == {"config.json", "sae_weights.safetensors"}
    assert folders.module("lorsa", 3).relative_to(folders.modules) == Path(
        "lorsa/2x/k6/layer3_lorsa_2x_k6"
    )


@pytest.mark.parametrize("name", CASES)
def test_every_graph_has_what_a_comparison_needs(name: str) -> None:
    graph, case = fixture(name), CASES[name]
    assert len(graph.input_ids) == len(case.prompt.split())
    assert len(graph.selected) == case.max_feature_nodes
    assert set(graph.selected) <= graph.active.keys()
    assert graph.adjacency.shape == (len(graph.rows), len(graph.columns))
    n_positions = len(graph.input_ids)
    assert len(graph.columns) == n_positions * (1 + 2 * N_LAYERS) + len(graph.selected)
    kinds = {(node.kind, node.sublayer % 2) for pair in graph.links for node in pair}
    assert len(kinds) == 6, "tokens, logits, and features and errors of both kinds of module"
    assert all(target.kind == "feature" and not target.sublayer % 2 for target in graph.traces)
    n_lorsa_features = sum(not node.sublayer % 2 for node in graph.selected)
    assert len(graph.traces) == int(n_lorsa_features * case.qk_top_fraction)


def test_all_kinds_of_contributors_are_in_some_trace() -> None:
    traces = [trace for name in CASES for trace in fixture(name).traces.values()]
    contributors = {
        (node.kind, node.sublayer % 2 if node.sublayer >= 0 else -1)
        for trace in traces
        for entries in (trace.q_marginal, trace.k_marginal, trace.pairs)
        for entry in entries
        for node in entry[:-1]
    }
    assert contributors == {
        ("embedding", -1),
        *((kind, parity) for kind in ("error", "feature", "bias_d") for parity in (0, 1)),
        ("bias_q", 0),
        ("bias_k", 0),
    }


def test_a_graph_is_read_as_it_was_written(tmp_path: Path) -> None:
    graph = fixture(_CASE)
    complete_graphs.save(graph, tmp_path / "graph.npz")
    again = complete_graphs.read(tmp_path / "graph.npz")
    assert_same_graph(again, graph)
    np.testing.assert_array_equal(again.adjacency, graph.adjacency)


def test_a_graph_is_the_same_in_another_order_of_columns() -> None:
    graph = fixture(_CASE)
    columns, adjacency = graph.columns[::-1], graph.adjacency[:, ::-1]
    assert_same_graph(replace(graph, columns=columns, adjacency=adjacency), graph)


def _without_a_link(graph: PlainGraph) -> PlainGraph:
    return replace(graph, links=graph.links - {next(iter(graph.links))})


def _with_two_selected_the_other_way_round(graph: PlainGraph) -> PlainGraph:
    first, second, *others = graph.selected
    return replace(graph, selected=[second, first, *others])


def _with_another_edge(graph: PlainGraph) -> PlainGraph:
    adjacency = graph.adjacency.copy()
    adjacency[3, 5] += 2e-6 * np.abs(adjacency).max()
    return replace(graph, adjacency=adjacency)


def _with_another_activation(graph: PlainGraph) -> PlainGraph:
    node = max(graph.active, key=graph.active.__getitem__)
    return replace(graph, active={**graph.active, node: 1.001 * graph.active[node]})


def _with_one_more_active_feature(graph: PlainGraph) -> PlainGraph:
    node = next(iter(graph.active))
    return replace(graph, active={**graph.active, node._replace(index=999): 1.0})


def _with_another_column(graph: PlainGraph) -> PlainGraph:
    return replace(graph, columns=[*graph.columns[:-1], graph.columns[-1]._replace(index=999)])


def _with_another_token(graph: PlainGraph) -> PlainGraph:
    return replace(graph, input_ids=[*graph.input_ids[:-1], 3])


def _with_another_probability(graph: PlainGraph) -> PlainGraph:
    return replace(graph, probabilities=graph.probabilities * np.float32(1.001))


def _with_logits_swapped(graph: PlainGraph) -> PlainGraph:
    return replace(graph, logits=graph.logits[::-1])


def _with_another_trace(graph: PlainGraph, change: Callable[[Trace], Trace]) -> PlainGraph:
    target = next(iter(graph.traces))
    return replace(graph, traces={**graph.traces, target: change(graph.traces[target])})


def _with_pairs_swapped(graph: PlainGraph) -> PlainGraph:
    return _with_another_trace(graph, lambda t: replace(t, pairs=t.pairs[::-1]))


def _with_a_shorter_list(graph: PlainGraph) -> PlainGraph:
    return _with_another_trace(graph, lambda t: replace(t, k_marginal=t.k_marginal[:-1]))


def _with_another_marginal(graph: PlainGraph) -> PlainGraph:
    def change(trace: Trace) -> Trace:
        (node, value), *others = trace.q_marginal
        return replace(trace, q_marginal=[(node, 1.001 * value), *others])

    return _with_another_trace(graph, change)


def _with_a_trace_missing(graph: PlainGraph) -> PlainGraph:
    target = next(iter(graph.traces))
    return replace(graph, traces={k: v for k, v in graph.traces.items() if k != target})


@pytest.mark.parametrize(
    "change",
    [
        _without_a_link,
        _with_two_selected_the_other_way_round,
        _with_another_edge,
        _with_another_activation,
        _with_one_more_active_feature,
        _with_another_column,
        _with_another_token,
        _with_another_probability,
        _with_logits_swapped,
        _with_pairs_swapped,
        _with_a_shorter_list,
        _with_another_marginal,
        _with_a_trace_missing,
    ],
)
def test_a_difference_between_two_graphs_is_seen(
    change: Callable[[PlainGraph], PlainGraph],
) -> None:
    graph = fixture(_CASE)
    with pytest.raises(AssertionError):
        assert_same_graph(change(graph), graph)


@pytest.mark.parametrize("name", complete_documents.CASES)
def test_a_document_shows_the_graph_of_its_case(name: str) -> None:
    graph, document = fixture(name), complete_documents.fixture(name)
    row = {node: place for place, node in enumerate(graph.rows)}
    column = {node: place for place, node in enumerate(graph.columns)}
    weights = {
        (node_id(source), node_id(target)): graph.adjacency[row[target], column[source]]
        for target, source in graph.links
    }
    links = {(link["source"], link["target"]): link["weight"] for link in document["links"]}
    assert links == pytest.approx(weights)
    for target, trace in graph.traces.items():
        node = next((n for n in document["nodes"] if n["node_id"] == node_id(target)), None)
        if node is not None:
            lists = node["qk_tracing_results"]
            expected: tuple[list[Any], ...] = (trace.pairs, trace.q_marginal, trace.k_marginal)
            for key, entries in zip(complete_documents.LISTS, expected, strict=True):
                shown = [entry[:-1] for entry in lists[key]]
                assert shown == [list(map(node_id, entry[:-1])) for entry in entries]


def test_the_documents_have_nodes_of_every_type() -> None:
    documents = [complete_documents.fixture(name) for name in complete_documents.CASES]
    assert {node["feature_type"] for document in documents for node in document["nodes"]} == {
        "cross layer transcoder",
        "lorsa",
        "mlp reconstruction error",
        "lorsa error",
        "embedding",
        "logit",
    }
    others = [node for d in documents for node in d.get("qk_only_nodes", {}).values()]
    biases = {n["clerp"].split("(")[1] for n in others if n["feature_type"] == "bias"}
    assert biases == {"lorsa_bQ)", "lorsa_bK)", "lorsa_bD)", "tc_bD)"}


def _changed(document: Document, change: Callable[[Document], None]) -> Document:
    changed = copy.deepcopy(document)
    change(changed)
    return changed


def _feature(document: Document) -> Document:
    return next(node for node in document["nodes"] if node["feature_type"] == "lorsa")


def _traced(document: Document) -> Document:
    return next(node for node in document["nodes"] if "qk_tracing_results" in node)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["nodes"].remove(_feature(d)),
        lambda d: d["links"].pop(),
        lambda d: _feature(d).update(feature_type="cross layer transcoder"),
        lambda d: _feature(d).update(clerp="F1"),
        lambda d: _feature(d).update(layer=17),
        lambda d: _feature(d).update(influence=1.5),
        lambda d: d["links"][0].update(weight=2 * d["links"][0]["weight"]),
        lambda d: d["qk_only_nodes"].popitem(),
        lambda d: _traced(d).pop("qk_tracing_results"),
        lambda d: _traced(d)["qk_tracing_results"]["pair_wise_contributors"].reverse(),
        lambda d: _traced(d)["qk_tracing_results"]["top_k_marginal_contributors"].pop(),
        lambda d: d["nodes"].append({**_feature(d), "node_id": "another"}),
        lambda d: d["nodes"].append(_feature(d)),
        lambda d: d["links"].append(d["links"][5]),
    ],
)
def test_a_difference_between_two_documents_is_seen(change: Callable[[Document], None]) -> None:
    document = complete_documents.fixture(_CASE)
    with pytest.raises(AssertionError):
        assert_same_document(_changed(document, change), document)


def test_a_document_may_show_tokens_without_a_link_besides() -> None:
    document = complete_documents.fixture(_CASE)
    token = {"node_id": "E_3_0", "feature_type": "embedding"}

    def change(changed: Document) -> None:
        changed["nodes"].append(token)
        changed["nodes"][0]["run_idx"] = 0

    assert_same_document(_changed(document, change), document)
