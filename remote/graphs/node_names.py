"""Words for the nodes of a graph."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remote.graphs.document import (
    BIAS,
    EMBEDDING,
    ERROR,
    FEATURE,
    LOGIT,
    LORSA,
    LORSA_ERROR,
    GraphNode,
)
from viewer import demo_features

if TYPE_CHECKING:
    from remote.labels.labels import Labels  # the worker's image has no such module

KIND_NAMES = {FEATURE: "transcoder", LORSA: "Lorsa"}

_OTHERS = {
    ERROR: "error of layer {layer}'s MLP",
    LORSA_ERROR: "error of layer {layer}'s attention",
    LOGIT: "prediction",
}
# By the part of the id that tells which bias it is.
_BIASES = {
    "lorsa_bQ": "query bias of layer {layer}'s Lorsa",
    "lorsa_bK": "key bias of layer {layer}'s Lorsa",
    "lorsa_bD": "bias that layer {layer}'s Lorsa adds",
    "tc_bD": "bias that layer {layer}'s transcoder adds",
}

FeatureName = tuple[str, str]  # `feature_type` and `layer_index`
Names = Mapping[FeatureName, str]


def feature_names(
    metadata: Mapping[str, Any],
    wanted: Iterable[FeatureName] = (),
    labels: "Labels | None" = None,
) -> dict[FeatureName, str]:
    """What features do, by `feature_type` and `layer_index`: all of the demo's, where the graph is
    the demo's, or else what Neuronpedia says.

    Args:
        wanted: the features whose names are asked of Neuronpedia, the strongest first.
        labels: where to ask; None, nobody is asked.
    """
    demo = {
        (kind, name): demo_features.label(feature)
        for kind in KIND_NAMES
        for name, feature in demo_features.features(metadata, kind).items()
    }
    if demo or labels is None:
        return demo
    return labels.names(metadata, wanted)


def feature_name(node: GraphNode, names: Names) -> str:
    """What a node does, where it is a feature of which this is known; else nothing."""
    return names.get(name_of(node), "") if node.index else ""


def name_of(node: GraphNode) -> FeatureName:
    """The key of a feature in `Names`."""
    return node.feature_type, f"{node.layer}_{node.index}"


def node_name(node: GraphNode, tokens: Sequence[str]) -> str:
    """A node in words: kind, layer and number of a feature, as in `Lorsa 1/105`."""
    if node.is_feature:
        return f"{KIND_NAMES[node.feature_type]} {node.layer}/{node.index}"
    if node.feature_type == EMBEDDING and 0 <= node.ctx_idx < len(tokens):
        return f'token "{tokens[node.ctx_idx]}"'
    words = _OTHERS.get(node.feature_type, node.node_id)
    if node.feature_type == BIAS:
        name = node.node_id.partition("_bias_")[2].rpartition("_")[0]
        words = _BIASES.get(name, node.node_id)
    return words.replace("{layer}", node.layer)
