"""A graph document as large as a researcher's usual one, with labels as long as Neuronpedia's."""

import random
from typing import Any

from graphs.nodes import cantor_pairing

N_LAYERS = 26
_PROMPT = (
    "<bos> Fact: the capital of the state containing the largest city named Dallas, which is "
    "where President Kennedy was internationally remembered,"
)
TOKENS = tuple(_PROMPT.split(" "))
_LABELS = (
    "references to Texas and to places within the state of Texas",
    "words naming capitals, seats of government and administrative centres",
    "say a city's name after a preposition of place",
    "commas that separate a relative clause from the sentence's main part",
    "geographical terms",
)
_FEATURE, _ERROR = "cross layer transcoder", "mlp reconstruction error"


def large_graph(n_nodes: int = 650) -> dict[str, Any]:
    """A document with this many nodes over 26 layers and 21 tokens, the same each time."""
    chance = random.Random(0)
    last = len(TOKENS) - 1
    nodes = [_node(f"E_{i}_{i}", "embedding", "E", i, feature=i) for i in range(len(TOKENS))]
    predictions = [
        _node(f"{N_LAYERS}_{i}_{last}", "logit", N_LAYERS, last, feature=i,
              token_prob=0.5 / (i + 1), clerp=f'Output " {word}" (p={0.5 / (i + 1):.3f})')
        for i, word in enumerate(["Austin", "Houston", "internationally", "the", "San Antonio"])
    ]  # fmt: skip
    for i in range(n_nodes - len(nodes) - len(predictions)):
        layer, at = chance.randrange(N_LAYERS), min(last, int(chance.triangular(1, last + 1, last)))
        if i % 10 == 0 and f"0_{layer}_{at}" not in {node["node_id"] for node in nodes}:
            nodes.append(_node(f"0_{layer}_{at}", _ERROR, layer, at, feature=-1))
        else:
            label = chance.choice(_LABELS)
            number = cantor_pairing(layer, 1_000 + i)
            nodes.append(
                _node(f"{layer}_{1_000 + i}_{at}", _FEATURE, layer, at, feature=number, clerp=label,
                      activation=chance.uniform(1, 40))
            )  # fmt: skip
    nodes += predictions
    return {
        "metadata": {
            "slug": "dallas-austin",
            "scan": "gemma-2-2b",
            "transcoder_list": [],
            "prompt_tokens": [TOKENS[0], *(f" {token}" for token in TOKENS[1:])],
            "prompt": " ".join(TOKENS),
            "node_threshold": 0.8,
            "schema_version": 1,
        },
        "qParams": {},
        "nodes": nodes,
        "links": _links(nodes, chance),
    }


def strongest(graph: dict[str, Any], count: int) -> list[str]:
    """Ids to pin: predictions, and features of later and later layers."""
    features = [node for node in graph["nodes"] if node["feature_type"] == _FEATURE]
    features.sort(key=lambda node: node["layer"])
    step = max(1, len(features) // count)
    return [graph["nodes"][-5]["node_id"], *(node["node_id"] for node in features[::step][:count])]


def _node(name: str, kind: str, layer: int | str, position: int, **fields: Any) -> dict[str, Any]:
    return {
        "node_id": name,
        "jsNodeId": name,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": kind,
        "clerp": "",
        "influence": 0.3,
        "activation": None,
        "is_target_logit": kind == "logit",
    } | fields


def _links(nodes: list[dict[str, Any]], chance: random.Random) -> list[dict[str, Any]]:
    """To each node some from nodes of lower layers at positions up to its own."""
    links = []
    for node in nodes:
        if node["feature_type"] in {"embedding", _ERROR}:
            continue
        sources = [
            source for source in nodes
            if _level(source) < _level(node) and source["ctx_idx"] <= node["ctx_idx"]
        ]  # fmt: skip
        for source in chance.sample(sources, min(len(sources), 25)):
            weight = chance.gauss(0.3, 1)
            links.append({"source": source["node_id"], "target": node["node_id"], "weight": weight})
    return links


def _level(node: dict[str, Any]) -> int:
    return -1 if node["layer"] == "E" else int(node["layer"])
