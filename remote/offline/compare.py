"""Which features graphs of the same model share, and how strong each is in each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote.batch.folder import graph_files
from remote.errors import WrongFile
from remote.graphs.features import FeatureKey, Place, features_of
from remote.graphs.node_names import feature_names
from remote.graphs.origin import Origin
from remote.graphs.reading import read_graph
from remote.labels.labels import Labels


@dataclass(frozen=True)
class InGraph:
    """A feature in one graph, over all tokens where it is.

    `influence` is the sum of its shares, `activation` the largest.
    """

    positions: list[int]
    influence: float
    activation: float
    label: str = ""

    @classmethod
    def of(cls, places: Sequence[Place]) -> "InGraph":
        return cls(
            [place.position for place in places],
            sum(place.influence for place in places),
            max(place.activation for place in places),
            next((place.label for place in places if place.label), ""),
        )


@dataclass(frozen=True)
class ComparedGraph:
    path: Path
    slug: str
    prompt: str
    features: dict[FeatureKey, InGraph]


@dataclass(frozen=True)
class Feature:
    """A feature in all graphs that are compared; None where it is not."""

    key: FeatureKey
    graphs: list[InGraph | None]
    name: str = ""  # what it does, where the graphs don't say it

    @property
    def present(self) -> list[InGraph]:
        return [graph for graph in self.graphs if graph is not None]

    @property
    def label(self) -> str:
        return next((graph.label for graph in self.present if graph.label), self.name)

    @property
    def influence(self) -> float:
        """The mean over all graphs, with 0 where it is not."""
        return sum(graph.influence for graph in self.present) / len(self.graphs)

    @property
    def activation(self) -> float:
        """The mean over the graphs where it is."""
        return sum(graph.activation for graph in self.present) / len(self.present)


@dataclass(frozen=True)
class Comparison:
    """Graphs and their features.

    `common` features are in every graph, `differing` ones are not; each list begins with those of
    most influence. `recurring` has all that are in at least two, those in most graphs first.
    """

    graphs: list[ComparedGraph]
    common: list[Feature]
    differing: list[Feature]
    recurring: list[Feature]


def compare(
    paths: Sequence[Path], labels: Labels | None = None, top: int | None = None
) -> Comparison:
    """Compare the graphs in these files, and in these folders of batches.

    Args:
        labels: where features' names come from that aren't the demo's; None: from nowhere.
        top: features of each list that are named; None: all.

    Raises:
        WrongFile: there are fewer than two, one can't be read, or two are of different models.
    """
    files = [file for path in paths for file in graph_files(path)]
    if len(files) < 2:
        raise WrongFile("name two graphs at least, or the folder of a batch that has them")
    graphs: list[ComparedGraph] = []
    first: Origin | None = None
    fields: dict[str, Any] = {}
    for file in files:
        graph = read_graph(file)
        if first is None:
            first, fields = graph.origin, graph.metadata_fields
        graph.origin.check_same(first)
        features = {key: InGraph.of(places) for key, places in features_of(graph.nodes).items()}
        slug, prompt = graph.metadata.slug, graph.metadata.prompt
        graphs.append(ComparedGraph(file, slug, prompt, features))
    return _named_features(_compared(graphs), fields, labels, top)


def _named_features(
    comparison: Comparison, metadata: dict[str, Any], labels: Labels | None, top: int | None
) -> Comparison:
    """The same with the names of features that the graphs themselves don't name."""
    lists = (comparison.common, comparison.differing, comparison.recurring)
    shown = [feature for features in lists for feature in features[:top] if not feature.label]
    shown.sort(key=lambda feature: -feature.influence)
    names = feature_names(metadata, [feature.key.name for feature in shown], labels)

    def named(features: list[Feature]) -> list[Feature]:
        return [replace(one, name=names.get(one.key.name, "")) for one in features]

    return replace(
        comparison,
        common=named(comparison.common),
        differing=named(comparison.differing),
        recurring=named(comparison.recurring),
    )


def _compared(graphs: list[ComparedGraph]) -> Comparison:
    keys = sorted({key for graph in graphs for key in graph.features})
    features = [Feature(key, [graph.features.get(key) for graph in graphs]) for key in keys]
    features.sort(key=lambda feature: -feature.influence)
    common = [feature for feature in features if len(feature.present) == len(graphs)]
    differing = [feature for feature in features if len(feature.present) < len(graphs)]
    recurring = [feature for feature in features if len(feature.present) > 1]
    recurring.sort(key=lambda feature: -len(feature.present))
    return Comparison(graphs, common, differing, recurring)
