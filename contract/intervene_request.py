"""What `intervene` takes: groups of features, and experiments on them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from contract.closest import closest
from contract.fields import (
    MAX_FEATURES,
    MAX_FIELDS,
    FeatureKind,
    NonEmpty,
    PromptRequest,
    Schema,
    Whole,
    refuse_many_fields,
)
from contract.quoting import quoted, quoted_list

MAX_GROUPS = 50
MAX_EXPERIMENTS = 64
MAX_REPORTED = 1_000  # each is reported for every experiment
_MOST_NAMED = 8  # groups in an error


class GroupFeature(Schema):
    """One feature at one position of the prompt."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    position: Whole = Field(ge=0, description="of the prompt, where 0 is the leading special token")
    kind: FeatureKind | None = Field(None, description="absent: the one that is active there")


class GroupChange(Schema):
    """What an experiment sets the features of a group to."""

    group: NonEmpty = Field(description="its name in `groups`")
    scale: float | None = Field(None, description="times its activations on this prompt")
    value: float | None = Field(None, description="every feature's activation")

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        if (self.scale is None) == (self.value is None):
            given = "neither" if self.scale is None else "both"
            raise ValueError(f"give exactly one of scale and value, got {given}")
        return self


def _layer_range(data: Any) -> Any:
    """Refuse what is neither "all" nor two layers in their order."""
    if data is None or data == "all":
        return data
    is_pair = isinstance(data, list) and len(data) == 2 and all(type(n) is int for n in data)
    if not is_pair or not 0 <= data[0] <= data[1]:
        raise ValueError(
            f'give "all", or [first, last] with 0 <= first <= last, got {quoted_list(data)}'
        )
    return data


class InterveneRequest(PromptRequest):
    """What the next token and other features become when groups of features are set."""

    action: ClassVar = "intervene"

    groups: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=200)],
            Annotated[list[GroupFeature], Field(min_length=1, fail_fast=True)],
        ],
        BeforeValidator(refuse_many_fields),
    ] = Field(
        min_length=1,
        max_length=MAX_GROUPS,
        description=f"features by name of their group; {MAX_FEATURES} in all",
    )
    experiments: Annotated[
        list[Annotated[list[GroupChange], Field(max_length=MAX_FIELDS, fail_fast=True)]],
        Field(min_length=1, max_length=MAX_EXPERIMENTS, fail_fast=True),
    ] = Field(
        description="each is a list of groups to scale or set; of two on a feature the last counts"
    )
    targets: Annotated[list[NonEmpty], Field(max_length=MAX_REPORTED, fail_fast=True)] = Field(
        [],
        description="tokens whose logit and probability are reported, as documents show them",
    )
    top_k: Whole = Field(5, ge=0, description="likeliest next tokens that are reported")
    constrained_layers: Annotated[
        Literal["all"] | list[Whole] | None, BeforeValidator(_layer_range)
    ] = Field(
        None,
        description="layers whose MLPs, and attention if it has features, are frozen: `[first, "
        'last]`, or `"all"`, which freezes norms too',
    )
    freeze_attention: bool = Field(True, description="keep the prompt's attention patterns")

    @model_validator(mode="after")
    def _bounded_and_known(self) -> Self:
        n_features = sum(map(len, self.groups.values()))
        if n_features > MAX_FEATURES:
            raise ValueError(f"groups have {n_features} features, there may be {MAX_FEATURES}")
        for i, experiment in enumerate(self.experiments):
            for j, change in enumerate(experiment):
                if change.group not in self.groups:
                    close = closest(change.group, self.groups)
                    hint = f"did you mean {quoted(close)}?" if close else self._known()
                    raise ValueError(
                        f"experiments[{i}][{j}].group {quoted(change.group)} is no name in "
                        f"groups; {hint}"
                    )
        return self

    def _known(self) -> str:
        first = ", ".join(map(quoted, list(self.groups)[:_MOST_NAMED]))
        n_left_out = len(self.groups) - _MOST_NAMED
        return f"known: {first}" + (f" and {n_left_out} more" if n_left_out > 0 else "")
