"""What `steer` takes."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from contract.fields import MAX_FEATURES, FeatureKind, PromptRequest, Schema, Whole

ManyFeatures = Field(max_length=MAX_FEATURES, fail_fast=True)


class SteerFeature(Schema):
    """One feature, where its activation is read, and where and how it is changed."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    kind: FeatureKind | None = Field(
        None,
        description="what it is a feature of; without it, of what is active at "
        "token_active_position",
    )
    token_active_position: Whole = Field(
        ge=0, description="position whose activation the new value starts from"
    )
    steer_position: Whole | None = Field(None, ge=0, description="prompt position to change")
    steer_generated_tokens: bool = Field(False, description="change every generated token instead")
    ablate: bool = Field(False, description="set the activation to 0")
    delta: float | None = Field(None, description="add this to the activation")

    @model_validator(mode="after")
    def _one_target_and_one_change(self) -> Self:
        if (self.steer_position is not None) == self.steer_generated_tokens:
            given = "both" if self.steer_generated_tokens else "neither"
            raise ValueError(
                f"give exactly one of steer_position and steer_generated_tokens: true, got {given}"
            )
        if (self.delta is not None) == self.ablate:
            given = "both" if self.ablate else "neither"
            raise ValueError(f"give exactly one of ablate: true and delta, got {given}")
        return self


class SteerRequest(PromptRequest):
    """Continue a prompt twice: as the model would, and with features changed."""

    action: ClassVar = "steer"

    features: Annotated[list[SteerFeature], ManyFeatures] = Field(
        description="what to change; without any, both texts are the default one"
    )
    n_tokens: Whole = Field(10, ge=1, description="most tokens to generate")
    top_k: Whole = Field(5, ge=0, description="predictions reported after each token")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token")
    freq_penalty: float = Field(
        0.0,
        description="subtracted from a token's logit for each earlier use; below 0 is 0",
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**64, description="repeats a sampled generation exactly"
    )
    freeze_attention: bool = Field(False, description="keep the prompt's attention patterns")
    steered_output_only: bool = Field(False, description="skip the default generation")
    stream: bool = Field(False, description="send each token as it is generated")
    logits_format: Literal["pairs", "objects"] = Field(
        "pairs", description="form of the logits lists; `objects` when asked by `request_type`"
    )
