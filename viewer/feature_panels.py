"""What the viewer shows about a feature: examples for the demo model, for others an address."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from viewer import demo_features
from viewer.demo_features import LORSA, TRANSCODER, Metadata
from viewer.descriptions import SOURCE_SETS, Descriptions, feature_id, panel_of, source_set_of

_GROUPS_LISTED = 5
_COPIED = ("top_logits", "bottom_logits", "act_max", "activation_frequency", "histogram")
# The page knows a feature by layer and index as one number, which a transcoder's and a Lorsa's
# feature can share. There, a Lorsa's layers are counted from here on (web_assets/viewer.js).
LORSA_LAYERS = 10_000


def index(metadata: Metadata, *, are_labels_asked_for: bool = False) -> dict[str, Any]:
    """What the page needs about a graph's features before the user clicks one.

    Returns:
        By `feature_type`: `labels`, which are `demo_features.label` by `layer_index`; `page`, the
        address of a feature's page on Neuronpedia, or None; and whether the page `asks` this server
        for labels.
    """
    known = {kind: demo_features.features(metadata, kind) for kind in SOURCE_SETS}
    asks = are_labels_asked_for and not any(known.values())
    return {
        kind: {
            "labels": {name: demo_features.label(one) for name, one in features.items()},
            "page": feature_page(metadata, kind),
            "asks": asks and feature_id(metadata, kind, 0, 0) is not None,
        }
        for kind, features in known.items()
    }


def labels(
    metadata: Metadata, numbers: Sequence[int], descriptions: Descriptions
) -> dict[str, Any]:
    """Labels of features, by their numbers, from where they are described.

    Returns:
        `labels`, which lacks the features without one; and `problem`, a sentence or None.
    """
    ids = {number: feature_id(metadata, *place_of(number)) for number in numbers}
    described = descriptions.describe([found for found in ids.values() if found is not None])
    found = {number: described.found.get(one) for number, one in ids.items() if one is not None}
    return {
        "labels": {number: one.label for number, one in found.items() if one and one.label},
        "problem": described.problem,
    }


def panel(
    metadata: Metadata, number: int, descriptions: Descriptions | None = None
) -> dict[str, Any]:
    """A feature in the form that circuit-tracer's page reads
    (`circuit_tracer.frontend.feature_models`), with its `page` on Neuronpedia, or None.

    Args:
        metadata: of the graph that the feature is in.
        number: layer and index as one number, as `feature` of the page's nodes.
        descriptions: of real models' features, where they are asked for.
    """
    kind, layer, index = place_of(number)
    page = feature_page(metadata, kind)
    address = None if page is None else page.format(layer=layer, index=index)
    return {**_panel(metadata, number, descriptions, address), "page": address}


def _panel(
    metadata: Metadata, number: int, descriptions: Descriptions | None, address: str | None
) -> dict[str, Any]:
    kind, layer, index = place_of(number)
    known = demo_features.features(metadata, kind)
    feature = known.get(f"{layer}_{index}", {})
    texts = demo_features.texts() if feature else []
    if feature:
        title = _where_it_fires(feature, len(texts))
    elif known:
        title = "This feature fires on no text of the demo model's corpus."
    else:
        described, problem = _described(metadata, number, descriptions)
        if described is not None:
            return described
        where = "The graph does not say where its features are described."
        if address is not None:
            where = f"With the internet: {address}"
        title = f"No examples of this feature here{problem}. {where}"
    return {
        "examples_quantiles": [{"quantile_name": title, "examples": _examples(feature, texts)}],
        "top_logits": [],
        "bottom_logits": [],
        **{field: feature[field] for field in _COPIED if feature},
        **({"act_min": 0} if feature else {}),
    }


def _described(
    metadata: Metadata, number: int, descriptions: Descriptions | None
) -> tuple[dict[str, Any] | None, str]:
    """A feature's panel from its description; without one, why there is none."""
    wanted = feature_id(metadata, *place_of(number))
    if descriptions is None or wanted is None:
        return None, ""
    described = descriptions.describe([wanted])
    description = described.found.get(wanted)
    if description is not None:
        return panel_of(description), ""
    return None, f": {described.problem or 'Neuronpedia has no such feature'}"


def place_of(number: int) -> tuple[str, int, int]:
    """The `feature_type`, layer and index of a feature that the page knows by this number."""
    layer, index = cantor_unpairing(number)
    if layer >= LORSA_LAYERS:
        return LORSA, layer - LORSA_LAYERS, index
    return TRANSCODER, layer, index


def _where_it_fires(feature: Mapping[str, Any], n_texts: int) -> str:
    groups = [f"{group} {count}" for group, count in feature["groups"]]
    # A group's own name may have a comma.
    listed = "; ".join(groups[:_GROUPS_LISTED])
    more = "; …" if len(groups) > _GROUPS_LISTED else ""
    reads = f"Reads “{feature['reads']}” most. " if "reads" in feature else ""
    return f"{reads}Fires in {feature['texts']} of the corpus's {n_texts} texts: {listed}{more}"


def _examples(feature: Mapping[str, Any], texts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    return [
        {
            "tokens": texts[text],
            "tokens_acts_list": [activations.get(i, 0.0) for i in range(len(texts[text]))],
            "train_token_ind": peak,
            "is_repeated_datapoint": False,
        }
        for text, peak, pairs in feature.get("examples", ())
        for activations in [dict(pairs)]
    ]


def feature_page(metadata: Metadata, kind: str = TRANSCODER) -> str | None:
    """The address of a feature's page on Neuronpedia, with {layer} and {index} to fill in; None
    when the graph names no source set."""
    source_set = source_set_of(metadata, kind)
    if source_set is None:
        return None
    scan, source_set = (
        quote(name, safe="", errors="replace") for name in (metadata["scan"], source_set)
    )
    return f"https://www.neuronpedia.org/{scan}/{{layer}}-{source_set}/{{index}}"


def cantor_unpairing(number: int) -> tuple[int, int]:
    """The inverse of `graphs.nodes.cantor_pairing`: layer and index."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index
