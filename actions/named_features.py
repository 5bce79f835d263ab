"""Features as a request names them: which of the model's each of them is, and its activation."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import steering
from actions.job import Job
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import GroupFeature, SteerFeature
from steering import Feature


class Named(NamedTuple):
    """A feature as a request names it."""

    name: str  # in errors: `features[0]`
    sites: list[Feature]  # where the one that is meant may be


def look_up(
    asked: Iterable[tuple[str, GroupFeature | SteerFeature, int]], loaded: LoadedModel
) -> list[Named]:
    """Check each feature against the loaded model, once, however often it is named.

    Args:
        asked: the feature's name in errors, the feature, and where its activation is read.

    Raises:
        InvalidInput: the model doesn't have one.
    """
    layers: dict[object, list[int]] = {}
    found = []
    for name, feature, position in asked:
        key = (feature.layer, feature.index, feature.kind)
        if key not in layers:
            layers[key] = steering.layers_meant(loaded.model, *key, name)
        found.append((name, layers[key], position, feature.index))
    # Only now, so that a list whose last feature is refused costs less.
    return [
        Named(name, [(layer, position, index) for layer in where])
        for name, where, position, index in found
    ]


def read(
    named: Sequence[Named], where: str, loaded: LoadedModel, prompt: Prompt, job: Job
) -> list[tuple[Feature, float]]:
    """The feature that each name means, with its activation on the prompt. It needs the model.

    Args:
        where: what errors call the position.

    Raises:
        InvalidInput: a name may mean two features.
        NotFinite: an activation is not a finite number.
    """
    sites = list(dict.fromkeys(site for each in named for site in each.sites))
    values = steering.feature_activations(loaded.model, prompt.ids, sites, job.check)
    activations = dict(zip(sites, values, strict=True))
    meant = [
        steering.active_one(each.sites, [activations[s] for s in each.sites], each.name, where)
        for each in named
    ]
    return [(site, activations[site]) for site in meant]
