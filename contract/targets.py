"""What a graph is attributed from: tokens, differences of logits, features at a position."""

from typing import Annotated

from pydantic import BaseModel, Discriminator, Field, Tag

from contract.fields import FeatureKind, NonEmpty, Schema, Whole

MAX_TARGETS = 1_000  # a graph of more can't be read, and a body has room for as many
MAX_TOKENS_PER_SIDE = 1_000  # of a difference of logits
ManyTargets = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)

Side = Annotated[
    list[NonEmpty], Field(min_length=1, max_length=MAX_TOKENS_PER_SIDE, fail_fast=True)
]


class RequestedDifference(Schema):
    """A difference of logits: the mean logit of some tokens less the mean of others."""

    plus: Side = Field(examples=[[" basket"]])
    minus: Side = Field(examples=[[" tennis"]])


class RequestedFeature(Schema):
    """A feature that is active at a position of the prompt: what made it fire."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    position: Whole = Field(ge=0)
    kind: FeatureKind = Field(
        "transcoder", description="`lorsa` for a feature of attention, where the set has them"
    )


def _kind_of_target(target: object) -> str | None:
    """Which kind of attribution target is meant, so that errors are about that kind alone."""
    if isinstance(target, str):
        return "token"
    for kind, model in TARGET_MODELS.items():
        if isinstance(target, model) or (
            isinstance(target, dict)
            and any(target.get(name) is not None for name in model.model_fields)
        ):
            return kind
    return None


TARGET_MODELS: dict[str, type[BaseModel]] = {
    "difference": RequestedDifference,
    "feature": RequestedFeature,
}

AttributionTarget = Annotated[
    Annotated[NonEmpty, Tag("token")]
    | Annotated[RequestedDifference, Tag("difference")]
    | Annotated[RequestedFeature, Tag("feature")],
    Discriminator(
        _kind_of_target,
        custom_error_type="no_target",
        custom_error_message='should be a token string, {"plus", "minus"} with lists of token '
        'strings, or {"layer", "index", "position"}',
    ),
]
