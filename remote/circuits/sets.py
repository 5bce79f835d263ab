"""Sets of features in a graph: all that it has, and those that somebody chooses."""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contract.fields import FeatureKind
from remote.errors import WrongFile
from remote.graphs.features import FeatureKey, Place, features_of, key_of
from remote.graphs.groups import GraphParameters
from remote.graphs.origin import Origin
from remote.graphs.reading import GraphFile, Metadata, read_graph

_NAME = re.compile(
    r"((?P<kind>lorsa|transcoder):)?(?P<layer>\d{1,6}):(?P<index>\d{1,18})(:(?P<position>\d{1,9}))?"
)
_MOST_NAMED = 8


@dataclass(frozen=True, order=True)
class Site:
    """A feature at a token of the prompt."""

    key: FeatureKey
    position: int

    def fields(self) -> dict[str, Any]:
        """As `intervene` takes it."""
        return {**asdict(self.key), "position": self.position}


@dataclass(frozen=True)
class NamedFeature:
    """A feature as it is named on the command line: at one token, or wherever it is."""

    key: FeatureKey
    position: int | None

    @classmethod
    def parse(cls, text: str) -> "NamedFeature":
        """Read LAYER:INDEX:POSITION, or LAYER:INDEX, with `lorsa:` before it where it is one.

        Raises:
            ValueError: it has another form.
        """
        found = _NAME.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"{text[:60]!r} is not LAYER:INDEX:POSITION or LAYER:INDEX, such as 2:157:4; a "
                "feature of attention begins with lorsa:"
            )
        kind: FeatureKind = "lorsa" if found["kind"] == "lorsa" else "transcoder"
        position = found["position"]
        key = FeatureKey(int(found["layer"]), int(found["index"]), kind)
        return cls(key, None if position is None else int(position))

    def is_at(self, site: Site) -> bool:
        return site.key == self.key and self.position in {None, site.position}


@dataclass(frozen=True)
class CircuitGraph:
    """A graph as far as its features matter, without its links.

    `sites` has each feature at each of its tokens, `places` what the document says of it there,
    `groups` has the places in `sites` of the features in each supernode, `pinned` those of the
    pinned ones.
    """

    path: Path
    metadata: Metadata
    origin: Origin
    sites: list[Site]
    places: list[Place]
    groups: dict[str, frozenset[int]]
    pinned: frozenset[int]

    @classmethod
    def read(cls, path: Path) -> "CircuitGraph":
        """Read a graph document.

        Raises:
            WrongFile: there is none in the file, or its groups and pins are not as a graph's are.
        """
        return cls.of(read_graph(path))

    @classmethod
    def of(cls, graph: GraphFile) -> "CircuitGraph":
        try:
            parameters = GraphParameters.model_validate(graph.parameters or {})
        except ValidationError:
            raise WrongFile(
                f"{graph.path}: no graph document, qParams is not as a graph's is"
            ) from None
        found = {
            Site(key, place.position): place
            for key, places in features_of(graph.nodes).items()
            for place in places
        }
        sites = sorted(found)
        number = {site: n for n, site in enumerate(sites)}
        of_node: dict[str, int] = {}
        for node in graph.nodes:
            key = key_of(node)
            if key is not None:
                of_node[node.node_id] = number[Site(key, node.ctx_idx)]
        groups: dict[str, frozenset[int]] = {}
        for name, *ids in filter(None, parameters.supernodes):
            groups[name] = groups.get(name, frozenset()) | _known(ids, of_node)
        pinned = _known(parameters.pinnedIds, of_node)
        places = [found[site] for site in sites]
        return cls(graph.path, graph.metadata, graph.origin, sites, places, groups, pinned)

    def subgraph(self) -> frozenset[int]:
        """The features that are pinned or in a group, as the viewer shows them."""
        return self.pinned.union(*self.groups.values())


@dataclass(frozen=True)
class Selection:
    """Which features of each graph are the set: one of these, or else the graph's subgraph."""

    features: Sequence[NamedFeature] = ()
    groups: Sequence[str] = ()
    strongest: int | None = None

    def of(self, graph: CircuitGraph) -> frozenset[int]:
        """The places in the graph's `sites` of the set's features, at least one.

        Raises:
            WrongFile: the graph has none of them.
        """
        if self.features:
            return _found(graph, _named(graph, self.features), _words(len(self.features)))
        if self.groups:
            return _found(graph, _in_groups(graph, self.groups), _no_group(graph, self.groups))
        if self.strongest is not None:
            order = sorted(range(len(graph.sites)), key=lambda n: -graph.places[n].influence)
            return _found(graph, order[: self.strongest], "no feature is in it")
        return _found(
            graph,
            graph.subgraph(),
            "it has no group and no pin with features; name some with --features, --group or "
            '--strongest, or make the graph with supernodes: "auto"',
        )

    def missing(self, graph: CircuitGraph) -> int:
        """How many of the features that were named the graph doesn't have."""
        return sum(not any(map(name.is_at, graph.sites)) for name in self.features)


def _known(ids: Iterable[str], of_node: dict[str, int]) -> frozenset[int]:
    return frozenset(of_node[node_id] for node_id in ids if node_id in of_node)


def _named(graph: CircuitGraph, names: Sequence[NamedFeature]) -> Iterable[int]:
    by_key: dict[FeatureKey, list[NamedFeature]] = {}
    for name in names:
        by_key.setdefault(name.key, []).append(name)
    for n, site in enumerate(graph.sites):
        if any(name.is_at(site) for name in by_key.get(site.key, ())):
            yield n


def _in_groups(graph: CircuitGraph, names: Sequence[str]) -> Set[int]:
    return frozenset().union(*(graph.groups.get(name, frozenset()) for name in names))


def _words(count: int) -> str:
    if count == 1:
        return "the feature is not in it"
    return f"none of the {count} features is in it"


def _no_group(graph: CircuitGraph, names: Sequence[str]) -> str:
    wanted = " or ".join(repr(name[:60]) for name in names[:_MOST_NAMED])
    known = [repr(name[:60]) for name, members in graph.groups.items() if members]
    if not known:
        return f"it has no group {wanted}, and no other group of features"
    more = ", ..." if len(known) > _MOST_NAMED else ""
    return f"it has no group {wanted}; its groups are {', '.join(known[:_MOST_NAMED])}{more}"


def _found(graph: CircuitGraph, members: Iterable[int], reason: str) -> frozenset[int]:
    found = frozenset(members)
    if not found:
        raise WrongFile(f"{graph.path}: {reason}")
    return found
