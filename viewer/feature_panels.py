"""What the viewer shows about a feature: examples for the demo model, for others an address.

The demo's examples are in `demo/feature_examples.json.gz`, which demo/feature_examples.py writes.
"""

import gzip
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

DEMO_SCAN = "demo"
DEMO_TRANSCODERS = "demo/transcoders"
DEMO_EXAMPLES = Path(__file__).parent.parent / "demo" / "feature_examples.json.gz"

_GROUPS_LISTED = 5
_COPIED = ("top_logits", "bottom_logits", "act_max", "activation_frequency", "histogram")

Metadata = Mapping[str, Any]


def index(metadata: Metadata) -> dict[str, Any]:
    """What the page needs about a graph's features before the user clicks one.

    Returns:
        `labels`, by `layer_index`: the token that a feature fires on most, and the one that it
        promotes most; and `page`, the address of a feature's page on Neuronpedia, or None.
    """
    labels = {}
    if _is_demo(metadata):
        labels = {
            name: f"{_bare(feature['fires_on'])} → {_bare(feature['top_logits'][0])}"
            for name, feature in _demo_examples()["features"].items()
        }
    return {"labels": labels, "page": feature_page(metadata)}


def panel(metadata: Metadata, number: int) -> dict[str, Any]:
    """A feature in the form that circuit-tracer's page reads
    (`circuit_tracer.frontend.feature_models`).

    Args:
        metadata: of the graph that the feature is in.
        number: layer and index as one number, as `feature` of a graph's nodes.
    """
    layer, index = cantor_unpairing(number)
    feature: Mapping[str, Any] = {}
    texts: Sequence[Sequence[str]] = []
    if not _is_demo(metadata):
        page = feature_page(metadata)
        where = "The graph does not say where its features are described."
        if page is not None:
            where = f"With the internet: {page.format(layer=layer, index=index)}"
        title = f"No examples of this feature here. {where}"
    elif (name := f"{layer}_{index}") not in _demo_examples()["features"]:
        title = "This feature fires on no text of the demo model's corpus."
    else:
        feature, texts = _demo_examples()["features"][name], _demo_examples()["texts"]
        groups = [f"{group} {count}" for group, count in feature["groups"]]
        listed = ", ".join(groups[:_GROUPS_LISTED])
        more = ", …" if len(groups) > _GROUPS_LISTED else ""
        title = f"Fires in {feature['texts']} of the corpus's {len(texts)} texts: {listed}{more}"
    examples = [
        {
            "tokens": texts[text],
            "tokens_acts_list": [activations.get(i, 0.0) for i in range(len(texts[text]))],
            "train_token_ind": peak,
            "is_repeated_datapoint": False,
        }
        for text, peak, pairs in feature.get("examples", ())
        for activations in [dict(pairs)]
    ]
    return {
        "examples_quantiles": [{"quantile_name": title, "examples": examples}],
        "top_logits": [],
        "bottom_logits": [],
        **{field: feature[field] for field in _COPIED if feature},
        **({"act_min": 0} if feature else {}),
    }


def feature_page(metadata: Metadata) -> str | None:
    """The address of a feature's page on Neuronpedia, with {layer} and {index} to fill in; None
    when the graph names no source set."""
    details = metadata.get("feature_details")
    source_set = details.get("neuronpedia_source_set") if isinstance(details, Mapping) else None
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


def _bare(token: str) -> str:
    return token.strip() or token.replace("\n", "⏎")


def _is_demo(metadata: Metadata) -> bool:
    info = metadata.get("info")
    transcoders = info.get("transcoder_set") if isinstance(info, Mapping) else None
    return metadata["scan"] == DEMO_SCAN and transcoders == DEMO_TRANSCODERS


@cache
def _demo_examples() -> Mapping[str, Any]:
    examples: Mapping[str, Any] = orjson.loads(gzip.decompress(DEMO_EXAMPLES.read_bytes()))
    return examples
