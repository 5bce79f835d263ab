"""A small complete graph document for the viewer, and the same with markup in its texts."""

import copy
import json
from typing import Any

from graphs.nodes import cantor_pairing
from tests.support.hostile_graphs import sound

TRANSCODER, LORSA = "cross layer transcoder", "lorsa"


def _node(name: str, kind: str, layer: int | str, position: int, **fields: Any) -> dict[str, Any]:
    index = int(name.split("_")[2]) if kind in {TRANSCODER, LORSA} else None
    number = None if index is None else cantor_pairing(int(layer), index)
    return {
        "node_id": name,
        "jsNodeId": name,
        "feature": number,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "clerp": "" if number is None else f"F{number}",
        "activation": None if number is None else 1.5,
        "influence": 0.3,
    } | fields


def complete() -> dict[str, Any]:
    """A graph of four tokens: a transcoder's and a Lorsa's feature of one number at one position,
    both errors there, and a trace that names nodes in the graph and outside of it.
    """
    graph = sound()
    graph["metadata"]["feature_details"]["neuronpedia_lorsa_source_set"] = "lorsa-8x"
    tracing = {
        "pair_wise_contributors": [
            ["0_cro_3_3", "E_21_1", 0.5],
            ["0_bias_lorsa_bQ_3", "E_21_1", 0.25],
        ],
        "top_q_marginal_contributors": [["0_cro_3_3", 2.0], ["0_bias_lorsa_bQ_3", 1.0]],
        "top_k_marginal_contributors": [["E_21_1", 1.75], ["0_lor_8_1", 1.25]],
    }  # fmt: skip
    graph["nodes"] = [
        _node("0_cro_3_3", TRANSCODER, 0, 3, influence=0.7),
        _node("1_cro_7_3", TRANSCODER, 1, 3),
        _node("1_lor_7_3", LORSA, 1, 3, qk_tracing_results=tracing),
        _node("1_error_mlp_3", "mlp reconstruction error", 1, 3, clerp='Err: mlp " est"'),
        _node("1_error_attn_3", "lorsa error", 1, 3, clerp='Err: attn " est"'),
        *(_node(f"E_{20 + i}_{i}", "embedding", "E", i, clerp="Emb") for i in range(4)),
        _node("2_5_3", "logit", 2, 3, feature=5, influence=1.0, clerp='Logit " le" (p=0.900)'),
    ]
    pairs = [("E_21_1", "1_lor_7_3"), ("1_lor_7_3", "2_5_3"), ("1_cro_7_3", "2_5_3"),
             ("1_lor_7_3", "1_cro_7_3"), ("1_error_mlp_3", "2_5_3"), ("1_error_attn_3", "2_5_3"),
             ("0_cro_3_3", "1_lor_7_3")]  # fmt: skip
    graph["links"] = [{"source": s, "target": t, "weight": 1.0} for s, t in pairs]
    graph["qk_only_nodes"] = {
        "0_bias_lorsa_bQ_3": _node("0_bias_lorsa_bQ_3", "bias", 0, 3, clerp="L0 Bias (lorsa_bQ)"),
        "0_lor_8_1": _node("0_lor_8_1", LORSA, 0, 1),
    }
    return graph


def marked_up_complete(markup: str) -> dict[str, Any]:
    """The graph with this text in its tokens, in every label, and in the ids that traces name."""
    graph = copy.deepcopy(complete())
    outside = graph["qk_only_nodes"]
    for node in [*graph["nodes"], *outside.values()]:
        if node["feature_type"] != "logit":
            node["clerp"] = markup
    for i, name in enumerate(["0_cro_3_3", "E_21_1", "0_bias_lorsa_bQ_3"]):
        quoted = json.dumps(f"{markup} {i}")
        graph = json.loads(json.dumps(graph).replace(json.dumps(name), quoted))
    graph["metadata"]["prompt_tokens"] = [f"{markup}{i}" for i in range(4)]
    traced = next(node for node in graph["nodes"] if "qk_tracing_results" in node)
    traced["qk_tracing_results"]["top_q_marginal_contributors"].append([f"{markup} nowhere", 0.5])
    return graph
