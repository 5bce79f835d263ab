"""The groups of a graph document, as `intervene` takes them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from remote.graphs.document import FEATURE, LORSA
from remote.graphs.features import NodeId
from remote.graphs.origin import Origin


class _Node(BaseModel):
    node_id: str
    feature_type: str
    ctx_idx: int


class GraphParameters(BaseModel):
    """A document's `qParams`, as far as they name nodes."""

    supernodes: list[list[str]] = []  # each a name and node ids
    pinnedIds: list[str] = []  # noqa: N815 - the document's name


class _Document(BaseModel):
    nodes: list[_Node]
    qParams: GraphParameters = GraphParameters()  # noqa: N815 - the document's name


@dataclass(frozen=True)
class GraphGroups:
    """The groups of a graph's file, and the model and set that their features are of."""

    origin: Origin
    groups: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, path: Path, document: Any) -> "GraphGroups":
        """The groups of this file's document.

        Raises:
            ValueError: as `groups_of` does.
        """
        groups = groups_of(document)
        return cls(Origin.of(path, document.get("metadata")), groups)


def groups_of(document: Any) -> dict[str, list[dict[str, Any]]]:
    """The features of each group by its name; groups of tokens or logits alone are left out.

    Groups of one name are told apart by a number.

    Raises:
        ValueError: it is no graph document, or has no group with features.
    """
    try:
        graph = _Document.model_validate(document)
    except ValidationError:
        raise ValueError("it is no graph document") from None
    features = {node.node_id for node in graph.nodes if node.feature_type in {FEATURE, LORSA}}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, *ids in filter(None, graph.qParams.supernodes):
        sites = [_site(node_id) for node_id in ids if node_id in features]
        if sites:
            groups[_unused(name, groups)] = sites
    if not groups:
        raise ValueError("it has no groups of features (supernodes)")
    return groups


def _site(node_id: str) -> dict[str, Any]:
    """A feature of a node's id: layer, index and position, in a complete graph its kind too."""
    found = NodeId.parse(node_id)
    if found is None:
        raise ValueError(f"its node {node_id[:60]!r} is no feature")
    return {name: value for name, value in asdict(found).items() if value is not None}


def _unused(name: str, groups: dict[str, Any]) -> str:
    number, unused = 1, name
    while unused in groups:
        number += 1
        unused = f"{name} {number}"
    return unused
