"""What `generate-graph` takes."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from contract.fields import (
    MAX_FIELDS,
    NonEmpty,
    PromptRequest,
    Text,
    Threshold,
    Whole,
    refuse_many_fields,
)
from contract.targets import AttributionTarget, ManyTargets

# Entries of each list of a trace: with many more, thousands of traces take gigabytes.
MAX_QK_TOPK = 256
MAX_URL_CHARACTERS = 16_384


class GenerateGraphRequest(PromptRequest):
    """Attribute the next-token prediction of a prompt to features."""

    action: ClassVar = "generate-graph"

    slug_identifier: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=200)] | None = (
        Field(None, description="the graph's name; made from prompt and time when absent")
    )
    batch_size: Whole = Field(48, ge=1, description="rows of the adjacency matrix in a batch")
    max_n_logits: Whole = Field(10, ge=1, description="most logit nodes")
    desired_logit_prob: float = Field(
        0.95, gt=0, le=1, description="probability that the logit nodes cover together"
    )
    attribution_targets: Annotated[list[AttributionTarget], ManyTargets] | None = Field(
        None,
        description="what to attribute from instead of the likeliest tokens: tokens as documents "
        "show them, differences of logits, features at a position",
    )
    supernodes: Literal["none", "auto"] = Field(
        "none", description="auto: features in named groups, and the strongest paths pinned"
    )
    format: Literal["json", "pt"] = Field(
        "json",
        description="`pt` is circuit-tracer's own file of the graph before pruning, uploaded to "
        "`signed_url` or sent over HTTP",
    )
    node_threshold: Threshold = Field(0.8, description="share of influence that nodes keep")
    edge_threshold: Threshold = Field(0.98, description="share of influence that links keep")
    max_feature_nodes: Whole | None = Field(
        None, ge=1, description="most feature nodes before pruning; MAX_FEATURE_NODES when absent"
    )
    signed_url: NonEmpty | None = Field(
        None, max_length=MAX_URL_CHARACTERS, description="presigned PUT for the graph"
    )
    signed_headers: Annotated[dict[NonEmpty, str], BeforeValidator(refuse_many_fields)] | None = (
        Field(None, max_length=MAX_FIELDS, description="headers that the URL was signed with")
    )
    compress: bool = Field(False, description="gzip the upload")
    user_id: Text | None = Field(None, description="display name of the graph's creator")
    enable_qk_tracing: bool = Field(
        False,
        description="say why attention features look where they look most; needs a set with Lorsas",
    )
    qk_top_fraction: float = Field(
        0.6, gt=0, le=1, description="share of the attention features that are traced"
    )
    qk_topk: int = Field(
        10,
        ge=1,
        le=MAX_QK_TOPK,
        description="most contributors in each list: those of largest signed value",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.signed_headers and self.signed_url is None:
            raise ValueError("signed_headers is given without signed_url")
        if self.supernodes != "none" and self.format == "pt":
            raise ValueError(
                f"supernodes is {self.supernodes!r} and format is 'pt': circuit-tracer's file has "
                "no groups; ask for json, or leave supernodes out"
            )
        return self
