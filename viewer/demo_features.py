"""What is known of the demo model's features: where they fire, what they promote, their labels.

demo/feature_examples.py writes the two files.
"""

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

TRANSCODER, LORSA = "cross layer transcoder", "lorsa"

_DEMO = Path(__file__).parent.parent / "demo"
_EXAMPLES = {
    TRANSCODER: _DEMO / "feature_examples.json.gz",
    LORSA: _DEMO / "complete" / "feature_examples.json.gz",
}
_COMPLETE_SET = "demo-crm"
_KINDS = {"demo/transcoders": (TRANSCODER,), _COMPLETE_SET: (TRANSCODER, LORSA)}

Metadata = Mapping[str, Any]


def features(metadata: Metadata, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """The demo's features of this type that fire on its corpus, by `layer_index`; none where the
    graph is another model's.

    Args:
        metadata: of a graph.
        kind: `feature_type` of the graph's nodes.
    """
    if kind not in _kinds(metadata):
        return {}
    found: Mapping[str, Mapping[str, Any]] = _examples(kind)["features"]
    return found


def is_of_demo(metadata: Metadata) -> bool:
    """Whether a graph is the demo model's, with a set that the repository has."""
    return bool(_kinds(metadata))


def _kinds(metadata: Metadata) -> tuple[str, ...]:
    """The types of the demo's features that are known, of a graph of the demo's."""
    info = metadata.get("info")
    name = info.get("transcoder_set") if isinstance(info, Mapping) else None
    if metadata.get("scan") != "demo" or not isinstance(name, str):
        return ()
    return _KINDS.get(name, ())


def texts() -> list[list[str]]:
    """The tokens of each text that the features were tried on."""
    found: list[list[str]] = _examples(TRANSCODER)["texts"]
    return found


def label(feature: Mapping[str, Any]) -> str:
    """The token that a feature fires on most, and the one that it promotes most. Before both, of a
    Lorsa's, the token that it reads most: `Michael ⇢ au → basket`."""
    reads = f"{_bare(feature['reads'])} ⇢ " if "reads" in feature else ""
    return f"{reads}{_bare(feature['fires_on'])} → {_bare(feature['top_logits'][0])}"


def _bare(token: str) -> str:
    return token.strip() or token.replace("\n", "⏎")


@cache
def _examples(kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = orjson.loads(gzip.decompress(_EXAMPLES[kind].read_bytes()))
    return found
