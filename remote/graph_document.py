"""What the client reads of a graph document, checked: the rest of it is the reader's business."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

FEATURE, LOGIT = "cross layer transcoder", "logit"


class _Part(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)


class GraphScores(_Part):
    replacement_score: float
    completeness_score: float


class GraphInfo(_Part):
    timings_ms: dict[str, float]


class GraphMetadata(_Part):
    slug: str = ""
    scan: str
    prompt: str
    prompt_tokens: list[str]
    attribution_targets: list[Any] | None = None  # None: the likeliest tokens
    graph_scores: GraphScores
    info: GraphInfo


class GraphNode(_Part):
    """A node; a feature has all of these, a logit its label and probability."""

    feature_type: str
    node_id: str = ""
    layer: str = ""
    ctx_idx: int = -1
    clerp: str | None = None
    token_prob: float = 0.0
    influence: float | None = None
    activation: float | None = None

    @property
    def index(self) -> str:
        """A feature's index in its transcoder, from an id such as 2_157_4."""
        return self.node_id.split("_")[1]


class GraphDocument(_Part):
    metadata: GraphMetadata
    nodes: list[GraphNode]
    links: list[Any]

    @model_validator(mode="after")
    def _features_are_whole(self) -> Self:
        length = len(self.metadata.prompt_tokens)
        for node in self.nodes:
            if node.feature_type == FEATURE and (
                node.influence is None
                or node.activation is None
                or node.node_id.count("_") < 2
                or not 0 <= node.ctx_idx < length
            ):
                raise ValueError(f"feature {node.node_id[:50]!r} is not as features are")
        return self
