"""What is known of a real model's feature from elsewhere, and the panel that shows it.

remote/labels/ fetches it. The viewer only shows it, and asks for it through `Descriptions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

# The metadata's name of what Neuronpedia has of each kind of feature.
SOURCE_SETS = {
    "cross layer transcoder": "neuronpedia_source_set",
    "lorsa": "neuronpedia_lorsa_source_set",
}
_LONGEST_NAME = 200  # of a model or a set; a graph's metadata may come from anybody
_MOST_LAYERS = 10_000
_MOST_FEATURES = 1 << 53  # of a layer, what JSON carries exactly


@dataclass(frozen=True)
class FeatureId:
    """A feature as Neuronpedia names it: `gemma-2-2b`, `5-gemmascope-transcoder-16k`, 123."""

    model: str
    source: str
    index: int


class Example(BaseModel):
    """A text on which a feature is active, with its activation at each token."""

    model_config = ConfigDict(allow_inf_nan=False)

    tokens: list[str]
    activations: list[float]

    @property
    def peak(self) -> int:
        return max(range(len(self.activations)), key=self.activations.__getitem__)


class Description(BaseModel):
    """What is known of a feature. Its lists are empty where that is not known."""

    model_config = ConfigDict(allow_inf_nan=False)

    explanations: list[str] = []
    examples: list[Example] = []  # the strongest first
    promoted: list[str] = []
    suppressed: list[str] = []
    frequency: float | None = None  # share of tokens on which it is active
    largest: float | None = None  # activation
    histogram: list[float] = []

    @property
    def label(self) -> str:
        """The first explanation, or nothing."""
        return self.explanations[0] if self.explanations else ""


@dataclass(frozen=True)
class Described:
    """The descriptions that were found; None for a feature that there is not.

    A feature is missing where `problem` says why.
    """

    found: Mapping[FeatureId, Description | None]
    problem: str | None = None


class Descriptions(Protocol):
    """Where descriptions come from."""

    def describe(self, features: Sequence[FeatureId]) -> Described: ...


def feature_id(metadata: Mapping[str, Any], kind: str, layer: int, index: int) -> FeatureId | None:
    """Neuronpedia's name of a feature of a graph; None where the graph does not say it."""
    model, source_set = metadata.get("scan"), source_set_of(metadata, kind)
    if source_set is None or not isinstance(model, str):
        return None
    if not all(0 < len(n) <= _LONGEST_NAME and n.isprintable() for n in (model, source_set)):
        return None
    if layer >= _MOST_LAYERS or index >= _MOST_FEATURES:
        return None
    return FeatureId(model, f"{layer}-{source_set}", index)


def source_set_of(metadata: Mapping[str, Any], kind: str) -> str | None:
    """Neuronpedia's name of the set that a graph's features of this type are of, if it says it."""
    details = metadata.get("feature_details")
    source_set = details.get(SOURCE_SETS[kind]) if isinstance(details, Mapping) else None
    return source_set if isinstance(source_set, str) else None


def panel_of(description: Description) -> dict[str, Any]:
    """A description in the form that circuit-tracer's page reads."""
    examples = [
        {
            "tokens": example.tokens,
            "tokens_acts_list": example.activations,
            "train_token_ind": example.peak,
            "is_repeated_datapoint": False,
        }
        for example in description.examples
    ]
    panel: dict[str, Any] = {
        "examples_quantiles": [{"quantile_name": _title(description), "examples": examples}],
        "top_logits": description.promoted,
        "bottom_logits": description.suppressed,
    }
    peaks = [example.activations[example.peak] for example in description.examples]
    largest = max([*peaks, description.largest or 0.0])
    if largest > 0:
        panel |= {"act_min": 0, "act_max": largest}
        if description.histogram:
            panel["histogram"] = description.histogram
    if description.frequency is not None:
        panel["activation_frequency"] = description.frequency
    return panel


def _title(description: Description) -> str:
    words = "; ".join(f"“{text}”" for text in description.explanations)
    title = f"Explained as {words}." if words else "Neuronpedia has no explanation of this feature."
    return title if description.examples else f"{title} It has no examples of it."
