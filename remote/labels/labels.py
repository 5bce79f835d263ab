"""Labels of features: fetched from Neuronpedia when somebody asks for them, and kept on disk.

A label is the first explanation that Neuronpedia has of a feature. What goes wrong is a sentence
in place of labels, and never an error of the command that shows them.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.errors import Unreachable, WrongTarget
from remote.graphs.node_names import FeatureName
from remote.labels.cache import LabelCache
from remote.labels.neuronpedia import AT_ONCE, Neuronpedia
from viewer.descriptions import Described, Description, FeatureId, feature_id

MOST_FEATURES = 1_000  # that one command asks for
_LONGEST_S = 60.0  # that it waits for them
_PAUSE_S = 30.0  # after a failure, in which nothing is asked

Tell = Callable[[str], None]  # called with a sentence


@dataclass
class Labels:
    """Descriptions of features, from the cache or else from Neuronpedia, one request at a time."""

    neuronpedia: Neuronpedia
    cache: LabelCache
    tell: Tell
    longest_s: float = _LONGEST_S
    pause_s: float = _PAUSE_S
    _said: set[str] = field(default_factory=set)
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _failure: tuple[float, str] = (0.0, "")  # until when nothing is asked, and why

    def describe(self, features: Sequence[FeatureId]) -> Described:
        """What is known of these features, the first MOST_FEATURES of them."""
        until = time.monotonic() + self.longest_s
        wanted = list(dict.fromkeys(features))
        found = self.cache.get(self.neuronpedia.url, wanted)
        problem = None
        if any(feature not in found for feature in wanted):
            if not self._asking.acquire(timeout=self.longest_s):
                problem = f"{self.neuronpedia.name} is still busy with what was asked before"
            else:
                try:
                    problem = self._fetch(wanted[:MOST_FEATURES], found, until)
                finally:
                    self._asking.release()
        if problem is not None:
            self._say(problem)
        return Described(found, problem)

    def names(
        self, metadata: Mapping[str, Any], wanted: Iterable[FeatureName]
    ) -> dict[FeatureName, str]:
        """The labels of a graph's features, where they have one. The arguments are those of
        `descriptions`."""
        found = self.descriptions(metadata, wanted)
        return {name: one.label for name, one in found.items() if one.label}

    def descriptions(
        self, metadata: Mapping[str, Any], wanted: Iterable[FeatureName]
    ) -> dict[FeatureName, Description]:
        """What is known of a graph's features, and a sentence to the user where nothing is.

        Args:
            metadata: of the graph.
            wanted: the strongest feature first.
        """
        names = list(dict.fromkeys(wanted))
        ids = {name: found for name in names if (found := _id_of(metadata, name)) is not None}
        if not ids:
            if names:
                self._say(
                    "the graph does not say where its features are described (its "
                    "feature_details); the worker's NP_TRANSCODER_SOURCE_SET sets it"
                )
            return {}
        described = self.describe(list(ids.values()))
        if described.problem is None:
            self._say_what_is_missing(described, list(ids.values()))
        descriptions = ((name, described.found.get(found)) for name, found in ids.items())
        return {name: one for name, one in descriptions if one is not None}

    def close(self) -> None:
        self.neuronpedia.close()

    def _fetch(
        self, wanted: Sequence[FeatureId], found: dict[FeatureId, Description | None], until: float
    ) -> str | None:
        """Add what is missing to `found`; return why not all of it, if so."""
        # Another thread may have fetched them while this one waited.
        found |= self.cache.get(self.neuronpedia.url, [one for one in wanted if one not in found])
        missing = [feature for feature in wanted if feature not in found]
        if time.monotonic() < self._failure[0]:
            return self._failure[1]
        for first in range(0, len(missing), AT_ONCE):
            if first and time.monotonic() >= until:
                left = len(missing) - first
                return f"{self.neuronpedia.name} takes too long, {left} features have no label"
            try:
                described = self.neuronpedia.describe(missing[first : first + AT_ONCE], until)
            except Unreachable as error:
                self._failure = time.monotonic() + self.pause_s, str(error)
                return str(error)
            self.cache.put(self.neuronpedia.url, described)
            found |= described
        return None

    def _say_what_is_missing(self, described: Described, ids: Sequence[FeatureId]) -> None:
        known = [found for found in described.found.values() if found is not None]
        model, name = ids[0].model, self.neuronpedia.name
        if not known:
            set_name = ids[0].source.partition("-")[2]
            self._say(f"{name} has none of these features: is {set_name!r} of {model!r} there?")
        elif not any(description.label for description in known):
            self._say(f"{name} has no explanation of these features yet")
        if len(ids) > MOST_FEATURES:
            self._say(
                f"only the {MOST_FEATURES} strongest of {len(ids)} features are asked for labels"
            )

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.tell(f"labels: {sentence}")


def open_labels(url: str, key: str | None, cache_home: Path, tell: Tell) -> Labels:
    """Labels from this Neuronpedia.

    Args:
        key: of Neuronpedia's API; without one it answers too.
        cache_home: the folder in which programs keep what they can fetch again.
        tell: called with a sentence about what goes wrong, once for each.

    Raises:
        WrongTarget: the URL is none.
    """
    cache = LabelCache(cache_home / "attribution-client" / "labels-1.sqlite")
    try:
        site = Neuronpedia(url, key)
    except WrongTarget:
        raise WrongTarget(
            f"NEURONPEDIA_URL: {url!r} is no http(s) URL; give one such as "
            "https://www.neuronpedia.org"
        ) from None
    return Labels(site, cache, tell)


def _id_of(metadata: Mapping[str, Any], name: FeatureName) -> FeatureId | None:
    kind, place = name
    layer, _, index = place.partition("_")
    if not (layer.isdecimal() and index.isdecimal() and len(place) < 30):
        return None
    return feature_id(metadata, kind, int(layer), int(index))
