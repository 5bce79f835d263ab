"""The features of a graph, by what tells them from each other in every graph of the same model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contract.fields import FeatureKind
from remote.graphs.document import FEATURE, LORSA, GraphNode
from remote.graphs.node_names import FeatureName

_ID = re.compile(
    r"(?P<layer>[0-9]{1,6})_((?P<kind>cro|lor)_)?(?P<index>[0-9]{1,18})_(?P<position>[0-9]{1,9})"
)
_KINDS: dict[str, FeatureKind] = {"cro": "transcoder", "lor": "lorsa"}
# What complete graphs call features: a number made of layer and index.
_NO_NAME = re.compile(r"F\d{1,40}")
_LABEL = re.compile(r'(?:Output|Logit) "(?P<token>.*)" \(p=[^)]*\)', re.DOTALL)


@dataclass(frozen=True)
class NodeId:
    """What the id of a feature's node says. The kind is None where all are transcoders'."""

    layer: int
    index: int
    position: int
    kind: FeatureKind | None

    @classmethod
    def parse(cls, node_id: str) -> "NodeId | None":
        """Read 2_157_4, or in a complete graph 2_cro_157_4 or 2_lor_9_4; None of other ids."""
        found = _ID.fullmatch(node_id)
        if found is None:
            return None
        kind = _KINDS[found["kind"]] if found["kind"] else None
        return cls(int(found["layer"]), int(found["index"]), int(found["position"]), kind)


@dataclass(frozen=True, order=True)
class FeatureKey:
    """Layer and index of a feature, and whether it is a transcoder's or a Lorsa's."""

    layer: int
    index: int
    kind: FeatureKind

    @property
    def name(self) -> FeatureName:
        """Its key among the names of features."""
        return LORSA if self.kind == "lorsa" else FEATURE, f"{self.layer}_{self.index}"

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}" + (" (lorsa)" if self.kind == "lorsa" else "")


@dataclass(frozen=True)
class Place:
    """A feature at one token: its activation there, and its share of the graph's influence.

    The label is what the document calls it; most documents leave that to others.
    """

    position: int
    activation: float
    influence: float
    label: str = ""


def features_of(nodes: Sequence[GraphNode]) -> dict[FeatureKey, list[Place]]:
    """The features among a graph's nodes, with the places where they are, by position.

    Each has its own share of the influence.
    """
    shares = own_shares(nodes)
    found: dict[FeatureKey, list[Place]] = {}
    for node, share in zip(nodes, shares, strict=True):
        key = key_of(node)
        if key is not None:
            place = Place(node.ctx_idx, node.activation or 0.0, share, own_label(node))
            found.setdefault(key, []).append(place)
    for places in found.values():
        places.sort(key=lambda place: place.position)
    return found


def key_of(node: GraphNode) -> FeatureKey | None:
    """A feature's key; None of any other node, and of one whose id is not as features' are."""
    found = NodeId.parse(node.node_id) if node.is_feature else None
    if found is None:
        return None
    return FeatureKey(found.layer, found.index, found.kind or "transcoder")


def own_label(node: GraphNode) -> str:
    """What the document calls a node, if it is more than the number of a feature."""
    label = node.clerp or ""
    return "" if node.is_feature and _NO_NAME.fullmatch(label) else label


def predicted_token(node: GraphNode) -> str:
    """The token of a logit node, from its label."""
    label = _LABEL.fullmatch(node.clerp or "")
    return label["token"] if label else node.clerp or ""


def strongest(nodes: Sequence[GraphNode]) -> list[tuple[float, GraphNode]]:
    """The features among a graph's nodes, those with the largest shares of its influence first."""
    shares = zip(own_shares(nodes), nodes, strict=True)
    return sorted(
        ((share, node) for share, node in shares if node.is_feature), key=lambda found: -found[0]
    )


def own_shares(nodes: Iterable[GraphNode]) -> list[float]:
    """Each node's own share of the influence; 0 where the document has none.

    A node's `influence` in the document is cumulative: of it and of all nodes that are stronger.
    Its own share is what it adds to the next stronger node of the document.
    """
    cumulative = [node.influence for node in nodes]
    shares = [0.0] * len(cumulative)
    before = 0.0
    for value, at in sorted(
        (value, at) for at, value in enumerate(cumulative) if value is not None
    ):
        shares[at] = value - before
        before = value
    return shares
