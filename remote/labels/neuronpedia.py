"""What Neuronpedia says of features, by the request that its own graph page makes.

`POST /api/features` takes a list of features and gives those of them that it has, each with its
explanations and its strongest examples (`apps/webapp/app/api/features/route.ts` at ebb8426 in
github.com/hijohnnylin/neuronpedia). An answer may be anything, so it is checked and cut to size.
"""

import time
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from remote.connection import Answer, Connection
from remote.errors import Unreachable
from remote.retries import Patience
from viewer.descriptions import Description, Example, FeatureId

URL = "https://www.neuronpedia.org"
AT_ONCE = 50  # features in a request: a megabyte or so comes back
_EXAMPLES = 5
_ANSWER_BYTES = 20_000_000
_READ_TIMEOUT_S = 10.0
# Labels are not worth a long wait: Neuronpedia's limit of requests is for an hour.
PATIENCE = Patience(outage_s=2.0, busy_s=5.0)

# What is kept of a feature.
_MOST_EXPLANATIONS = 3
_LONGEST_EXPLANATION = 300
_TOKENS_AROUND = 50  # on each side of an example's peak
_MOST_TOKENS = 10  # promoted, and suppressed
_LONGEST_TOKEN = 50
_MOST_BARS = 100


class _Part(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Explanation(_Part):
    description: str


class _Activation(_Part):
    tokens: list[str]
    values: list[float]


class _Feature(_Part):
    modelId: str  # noqa: N815 - Neuronpedia's names
    layer: str
    index: str
    explanations: list[_Explanation] = []
    activations: list[_Activation] = []
    pos_str: list[str] = []
    neg_str: list[str] = []
    frac_nonzero: float | None = None
    maxActApprox: float | None = None  # noqa: N815
    freq_hist_data_bar_heights: list[float] = []


_FEATURES = TypeAdapter(list[_Feature])


class Neuronpedia:
    """Requests to Neuronpedia, or to a server that answers as it does."""

    def __init__(self, url: str = URL, key: str | None = None, patience: Patience = PATIENCE):
        headers: Mapping[str, str] = {} if key is None else {"x-api-key": key}
        self._connection = Connection(url, headers, patience)
        self.url = self._connection.url
        self.name = self._connection.name

    def close(self) -> None:
        self._connection.close()

    def describe(
        self, features: Sequence[FeatureId], until: float
    ) -> dict[FeatureId, Description | None]:
        """The descriptions of these features, AT_ONCE at most; None where it has no such feature.

        Args:
            until: `time.monotonic()` after which no attempt begins.

        Raises:
            Unreachable: no usable answer came.
        """
        answer = self._connection.ask(
            "POST",
            "/api/features",
            [
                {
                    "modelId": feature.model,
                    "layer": feature.source,
                    "index": feature.index,
                    "maxActsToReturn": _EXAMPLES,
                }
                for feature in features
            ],
            read_timeout_s=_READ_TIMEOUT_S,
            until=max(until, time.monotonic()),
            most_bytes=_ANSWER_BYTES,
        )
        by_name = {
            (found.modelId, found.layer, found.index): _description(found)
            for found in self._features(answer)
        }
        return {
            feature: by_name.get((feature.model, feature.source, str(feature.index)))
            for feature in features
        }

    def _features(self, answer: Answer) -> list[_Feature]:
        if answer.status in {401, 403}:
            raise Unreachable(f"{self.name} refuses the request ({answer.describe()})")
        if answer.status != 200:
            raise Unreachable(f"{self.name} answered {answer.describe()}")
        try:
            return _FEATURES.validate_python(answer.body)
        except ValidationError:
            raise Unreachable(f"{self.name}: its answer is no list of features") from None


def _description(feature: _Feature) -> Description:
    explanations = (" ".join(found.description.split()) for found in feature.explanations)
    bars = feature.freq_hist_data_bar_heights
    return Description(
        explanations=[text[:_LONGEST_EXPLANATION] for text in explanations if text][
            :_MOST_EXPLANATIONS
        ],
        examples=_examples(feature.activations),
        promoted=_tokens(feature.pos_str[:_MOST_TOKENS]),
        suppressed=_tokens(feature.neg_str[:_MOST_TOKENS]),
        frequency=feature.frac_nonzero,
        largest=feature.maxActApprox,
        histogram=bars if len(bars) <= _MOST_BARS else [],
    )


def _examples(activations: Sequence[_Activation]) -> list[Example]:
    """The strongest examples, each cut to what surrounds its peak."""
    examples = []
    for activation in activations:
        length = min(len(activation.tokens), len(activation.values))
        if length == 0:
            continue
        values = activation.values[:length]
        peak = max(range(length), key=values.__getitem__)
        first, last = max(peak - _TOKENS_AROUND, 0), peak + _TOKENS_AROUND + 1
        tokens = _tokens(activation.tokens[:length][first:last])
        examples.append(Example(tokens=tokens, activations=values[first:last]))
    examples.sort(key=lambda example: -example.activations[example.peak])
    return examples[:_EXAMPLES]


def _tokens(tokens: Sequence[str]) -> list[str]:
    return [_token(token[:_LONGEST_TOKEN]) for token in tokens]


def _token(token: str) -> str:
    """A token as it stands in its text: vocabularies write its spaces in ways of their own."""
    token = token.replace("▁", " ")
    return f" {token[1:]}" if token.startswith("Ġ") else token
