"""The groups of a graph document, as `intervene` takes them."""

from typing import Any

from pydantic import BaseModel, ValidationError

from remote.graph_document import FEATURE


class _Node(BaseModel):
    node_id: str
    feature_type: str
    ctx_idx: int


class _Parameters(BaseModel):
    supernodes: list[list[str]] = []  # each a name and node ids


class _Document(BaseModel):
    nodes: list[_Node]
    qParams: _Parameters = _Parameters()  # noqa: N815 - the document's name


def groups_of(document: Any) -> dict[str, list[dict[str, int]]]:
    """The features of each group by its name; groups of tokens or logits alone are left out.

    Groups of one name are told apart by a number.

    Raises:
        ValueError: it is no graph document, or has no group with features.
    """
    try:
        graph = _Document.model_validate(document)
    except ValidationError:
        raise ValueError("it is no graph document") from None
    features = {node.node_id for node in graph.nodes if node.feature_type == FEATURE}
    groups: dict[str, list[dict[str, int]]] = {}
    for name, *ids in filter(None, graph.qParams.supernodes):
        sites = [_site(node_id) for node_id in ids if node_id in features]
        if sites:
            groups[_unused(name, groups)] = sites
    if not groups:
        raise ValueError("it has no groups of features (supernodes)")
    return groups


def _site(node_id: str) -> dict[str, int]:
    """A feature of a node's id: layer, index and position."""
    parts = node_id.split("_")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"its node {node_id[:60]!r} is no feature of a transcoder set")
    return dict(zip(("layer", "index", "position"), map(int, parts), strict=True))


def _unused(name: str, groups: dict[str, Any]) -> str:
    number, unused = 1, name
    while unused in groups:
        number += 1
        unused = f"{name} {number}"
    return unused
