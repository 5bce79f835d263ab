"""Graph documents of complete replacement models, and those that Neuronpedia's converter makes.

    theirs = fixture("glu-9")              of the graph that llamascopium makes of CASES["glu-9"]
    assert_same_document(ours, theirs)

`node_id` names a node of a plain graph as the documents do. The documents were made with slug
"case", scan "qwen3-1.7b" and the two source sets in METADATA.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.complete_graphs import FIXTURES, Node

# These have every kind of node between them, biases too.
CASES = ("topk-6", "glu-9", "no-rotary-12", "few-heads-12")
METADATA = {
    "slug": "case",
    "np_model_id": "qwen3-1.7b",
    "np_transcoder_source_set": "tiny-transcoders",
    "np_lorsa_source_set": "tiny-lorsas",
}
LISTS = ("pair_wise_contributors", "top_q_marginal_contributors", "top_k_marginal_contributors")
_NAMED = ("node_id", "jsNodeId", "feature", "feature_type", "layer", "ctx_idx", "clerp")
_BIASES = {"bias_q": "lorsa_bQ", "bias_k": "lorsa_bK"}

Document = dict[str, Any]


def fixture(name: str) -> Document:
    """What Neuronpedia's converter makes of a case in CASES."""
    document: Document = json.loads(gzip.decompress(fixture_path(name).read_bytes()))
    return document


def fixture_path(name: str) -> Path:
    return FIXTURES / "documents" / f"{name}.json.gz"


def save(document: Document, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(document).encode(), mtime=0))


def node_id(node: Node) -> str:
    """The id that Neuronpedia gives a node."""
    kind, sublayer, position, index = node
    layer, is_lorsa = sublayer // 2, sublayer % 2 == 0
    match kind:
        case "embedding":
            return f"E_{index}_{position}"
        case "logit":
            return f"{layer}_{index}_{position}"
        case "error":
            return f"{layer}_error_{'attn' if is_lorsa else 'mlp'}_{position}"
        case "feature":
            return f"{layer}_{'lor' if is_lorsa else 'cro'}_{index}_{position}"
    bias = _BIASES.get(kind, "lorsa_bD" if is_lorsa else "tc_bD")
    return f"{layer}_bias_{bias}_{position}"


def assert_same_document(ours: Document, theirs: Document) -> None:
    """Compare what both documents have: nodes, links and QK lists.

    Ours may say more: fields, and tokens and logits that have no link. Theirs has no activation of
    a feature that is only in QK lists.
    """
    our_nodes = {node["node_id"]: node for node in ours["nodes"]}
    their_nodes = {node["node_id"]: node for node in theirs["nodes"]}
    assert len(our_nodes) == len(ours["nodes"])
    assert their_nodes.keys() <= our_nodes.keys()
    unlinked = our_nodes.keys() - their_nodes.keys()
    assert {our_nodes[i]["feature_type"] for i in unlinked} <= {"embedding", "logit"}
    for name, node in their_nodes.items():
        _assert_same_name(our_nodes[name], node)
        for key in {"activation", "token_prob"} & node.keys():
            _assert_close([our_nodes[name].get(key)], [node.get(key)], 1e-4)
        _assert_same_lists(our_nodes[name], node)
    _assert_same_influences(our_nodes, their_nodes)
    our_links, their_links = _links(ours), _links(theirs)
    assert our_links.keys() == their_links.keys()
    _assert_close([our_links[link] for link in their_links], list(their_links.values()), 1e-6)
    our_others, their_others = ours.get("qk_only_nodes", {}), theirs.get("qk_only_nodes", {})
    assert our_others.keys() == their_others.keys() - unlinked
    for name, node in our_others.items():
        _assert_same_name(node, their_others[name])


def _assert_same_influences(ours: dict[str, Document], theirs: dict[str, Document]) -> None:
    """The same shares in the same order; nodes with all but equal shares may change places."""
    our_sums, their_sums = (
        sorted((nodes[name]["influence"], name) for name in theirs) for nodes in (ours, theirs)
    )
    _assert_close([s for s, _ in our_sums], [s for s, _ in their_sums], 1e-5)
    our_shares, their_shares = _shares(our_sums), _shares(their_sums)
    names = list(theirs)
    _assert_close([our_shares[n] for n in names], [their_shares[n] for n in names], 1e-4)


def _shares(sums: list[tuple[float, str]]) -> dict[str, float]:
    """Each node's own share, from the sums of shares down to it."""
    before = [0.0, *(total for total, _ in sums)]
    return {name: total - less for (total, name), less in zip(sums, before, strict=False)}


def _links(document: Document) -> dict[tuple[str, str], float]:
    links = {(link["source"], link["target"]): link["weight"] for link in document["links"]}
    assert len(links) == len(document["links"])
    return links


def _assert_same_name(ours: Document, theirs: Document) -> None:
    assert {key: ours[key] for key in _NAMED} == {key: theirs[key] for key in _NAMED}


def _assert_same_lists(ours: Document, theirs: Document) -> None:
    """Of one node: the same ids in the same order, with the same values."""
    ours, theirs = (node.get("qk_tracing_results") or {} for node in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for kind in theirs:
        got, expected = ours[kind], theirs[kind]
        assert [list(e[:-1]) for e in got] == [list(e[:-1]) for e in expected]
        _assert_close([e[-1] for e in got], [e[-1] for e in expected], 2e-5)


def _assert_close(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    assert [value is None for value in ours] == [value is None for value in theirs]
    got, expected = (np.array([v for v in vs if v is not None]) for vs in (ours, theirs))
    if expected.size:
        difference = np.abs(got - expected).max()
        assert difference <= tolerance * np.abs(expected).max()
