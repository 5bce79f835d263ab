"""The groups of a graph document, as `intervene` takes them."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from remote.graphs.document import FEATURE, LORSA


class _Node(BaseModel):
    node_id: str
    feature_type: str
    ctx_idx: int


class _Parameters(BaseModel):
    supernodes: list[list[str]] = []  # each a name and node ids


class _Document(BaseModel):
    nodes: list[_Node]
    qParams: _Parameters = _Parameters()  # noqa: N815 - the document's name


# A feature's id; in a complete graph with its kind.
_ID = re.compile(r"(?P<layer>[0-9]+)_((?P<kind>cro|lor)_)?(?P<index>[0-9]+)_(?P<position>[0-9]+)")
_KINDS = {"cro": "transcoder", "lor": "lorsa"}


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
    found = _ID.fullmatch(node_id)
    if found is None:
        raise ValueError(f"its node {node_id[:60]!r} is no feature")
    place = {name: int(found[name]) for name in ("layer", "index", "position")}
    return {**place, "kind": _KINDS[found["kind"]]} if found["kind"] else place


def _unused(name: str, groups: dict[str, Any]) -> str:
    number, unused = 1, name
    while unused in groups:
        number += 1
        unused = f"{name} {number}"
    return unused
