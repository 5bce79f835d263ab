"""What the viewer's panels say of a feature: examples for the demo model, else where to look.

The demo's come from `demo/feature_examples.json.gz`, which demo/feature_examples.py writes.
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

_GROUPS_SHOWN = 5

Metadata = Mapping[str, Any]


def index(metadata: Metadata) -> dict[str, Any]:
    """What the page needs of a graph's features before any is clicked.

    Returns:
        `labels`, by `layer_index`: the token that a feature fires on most, and the one that it
        promotes most; and `page`, the address of a feature's page elsewhere or None.
    """
    labels = {}
    if _is_demo(metadata):
        labels = {
            name: f"{_bare(feature['fires_on'])} → {_bare(feature['top_logits'][0])}"
            for name, feature in _demo_examples()["features"].items()
        }
    return {"labels": labels, "page": feature_page(metadata)}


def panel(metadata: Metadata, number: int) -> dict[str, Any]:
    """A feature as circuit-tracer's page reads it (`circuit_tracer.frontend.feature_models`).

    Args:
        metadata: of the graph that the feature is in.
        number: layer and index in one, as nodes have it in `feature`.
    """
    layer, index = cantor_unpairing(number)
    if not _is_demo(metadata):
        return _panel(f"No examples of this feature here. {_elsewhere(metadata, layer, index)}")
    feature = _demo_examples()["features"].get(f"{layer}_{index}")
    if feature is None:
        return _panel("This feature fires on no text of the demo model's corpus.")
    texts = _demo_examples()["texts"]
    groups = [f"{name} {count}" for name, count in feature["groups"]]
    shown = ", ".join(groups[:_GROUPS_SHOWN]) + (", …" if len(groups) > _GROUPS_SHOWN else "")
    return {
        **_panel(
            f"Fires in {feature['texts']} of the corpus's {len(texts)} texts: {shown}",
            [_example(texts[text], peak, dict(acts)) for text, peak, acts in feature["examples"]],
        ),
        "top_logits": feature["top_logits"],
        "bottom_logits": feature["bottom_logits"],
        "act_min": 0,
        "act_max": feature["act_max"],
        "activation_frequency": feature["activation_frequency"],
        "histogram": feature["histogram"],
    }


def feature_page(metadata: Metadata) -> str | None:
    """Where Neuronpedia has a feature's page, with {layer} and {index}; None where unknown."""
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


def _elsewhere(metadata: Metadata, layer: int, index: int) -> str:
    page = feature_page(metadata)
    if page is None:
        return "The graph does not say where its features are described."
    return f"With the internet: {page.format(layer=layer, index=index)}"


def _panel(title: str, examples: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {
        "examples_quantiles": [{"quantile_name": title, "examples": list(examples)}],
        "top_logits": [],
        "bottom_logits": [],
    }


def _example(tokens: Sequence[str], peak: int, activations: Mapping[int, float]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "tokens_acts_list": [activations.get(position, 0.0) for position in range(len(tokens))],
        "train_token_ind": peak,
        "is_repeated_datapoint": False,
    }


@cache
def _demo_examples() -> Mapping[str, Any]:
    examples: Mapping[str, Any] = orjson.loads(gzip.decompress(DEMO_EXAMPLES.read_bytes()))
    return examples
