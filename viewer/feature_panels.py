"""What the viewer shows about a feature: examples for the demo model, for others an address."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from viewer import demo_features
from viewer.demo_features import LORSA, TRANSCODER, Metadata

_GROUPS_LISTED = 5
_COPIED = ("top_logits", "bottom_logits", "act_max", "activation_frequency", "histogram")
# The metadata's name of what Neuronpedia has of each kind of feature.
_SOURCE_SETS = {
    TRANSCODER: "neuronpedia_source_set",
    LORSA: "neuronpedia_lorsa_source_set",
}
# The page knows a feature by layer and index as one number, which a transcoder's and a Lorsa's
# feature can share. There, a Lorsa's layers are counted from here on (web_assets/viewer.js).
LORSA_LAYERS = 10_000


def index(metadata: Metadata) -> dict[str, Any]:
    """What the page needs about a graph's features before the user clicks one.

    Returns:
        By `feature_type`: `labels`, which are `demo_features.label` by `layer_index`; and `page`,
        the address of a feature's page on Neuronpedia, or None.
    """
    return {
        kind: {
            "labels": {
                name: demo_features.label(feature)
                for name, feature in demo_features.features(metadata, kind).items()
            },
            "page": feature_page(metadata, kind),
        }
        for kind in _SOURCE_SETS
    }


def panel(metadata: Metadata, number: int) -> dict[str, Any]:
    """A feature in the form that circuit-tracer's page reads
    (`circuit_tracer.frontend.feature_models`).

    Args:
        metadata: of the graph that the feature is in.
        number: layer and index as one number, as `feature` of the page's nodes.
    """
    layer, index = cantor_unpairing(number)
    kind = TRANSCODER
    if layer >= LORSA_LAYERS:
        kind, layer = LORSA, layer - LORSA_LAYERS
    known = demo_features.features(metadata, kind)
    feature = known.get(f"{layer}_{index}", {})
    texts = demo_features.texts() if feature else []
    if feature:
        title = _where_it_fires(feature, len(texts))
    elif known:
        title = "This feature fires on no text of the demo model's corpus."
    else:
        page = feature_page(metadata, kind)
        where = "The graph does not say where its features are described."
        if page is not None:
            where = f"With the internet: {page.format(layer=layer, index=index)}"
        title = f"No examples of this feature here. {where}"
    return {
        "examples_quantiles": [{"quantile_name": title, "examples": _examples(feature, texts)}],
        "top_logits": [],
        "bottom_logits": [],
        **{field: feature[field] for field in _COPIED if feature},
        **({"act_min": 0} if feature else {}),
    }


def _where_it_fires(feature: Mapping[str, Any], n_texts: int) -> str:
    groups = [f"{group} {count}" for group, count in feature["groups"]]
    listed = ", ".join(groups[:_GROUPS_LISTED])
    more = ", …" if len(groups) > _GROUPS_LISTED else ""
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
    details = metadata.get("feature_details")
    source_set = details.get(_SOURCE_SETS[kind]) if isinstance(details, Mapping) else None
    if not isinstance(source_set, str):
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
