"""What the client reads of a graph document, checked: the rest of it is the reader's business."""

from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

FEATURE, LORSA, LOGIT = "cross layer transcoder", "lorsa", "logit"
ERROR, LORSA_ERROR = "mlp reconstruction error", "lorsa error"
EMBEDDING, BIAS = "embedding", "bias"


class Part(BaseModel):
    """An object of a graph document. Fields that the client doesn't read are left alone."""

    model_config = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)


class GraphScores(Part):
    replacement_score: float
    completeness_score: float


class GraphInfo(Part):
    timings_ms: dict[str, float]
    transcoder_set: str | None = None


class GraphMetadata(Part):
    slug: str = ""
    scan: str
    prompt: str
    prompt_tokens: list[str]
    attribution_targets: list[Any] | None = None  # None: the likeliest tokens
    graph_scores: GraphScores
    info: GraphInfo


class QKTracing(Part):
    """What an attention score is made of: ids and what each adds, the most first."""

    pair_wise_contributors: list[tuple[str, str, float]]
    top_q_marginal_contributors: list[tuple[str, float]]
    top_k_marginal_contributors: list[tuple[str, float]]


class GraphNode(Part):
    """A node; a feature has all of these but the tracing, a logit its label and probability."""

    feature_type: str
    node_id: str = ""
    layer: str = ""
    ctx_idx: int = -1
    clerp: str | None = None
    token_prob: float = 0.0
    influence: float | None = None
    activation: float | None = None
    qk_tracing_results: QKTracing | None = None

    @property
    def is_feature(self) -> bool:
        return self.feature_type in {FEATURE, LORSA}

    @property
    def index(self) -> str:
        """A feature's index in its layer, from an id such as 2_157_4, 2_cro_157_4 or 2_lor_9_4;
        of other nodes nothing."""
        return self.node_id.split("_")[-2] if self.is_feature else ""


class GraphLink(Part):
    source: str
    target: str
    weight: float


class GraphDocument(Part):
    metadata: GraphMetadata
    nodes: list[GraphNode]
    links: list[Any]
    qk_only_nodes: dict[str, GraphNode] = {}

    @property
    def is_complete(self) -> bool:
        """Whether its attention has features too."""
        return any(node.feature_type in {LORSA, LORSA_ERROR} for node in self.nodes)

    @cached_property
    def by_id(self) -> dict[str, GraphNode]:
        """The nodes, and those that only traces name."""
        return {node.node_id: node for node in self.nodes} | self.qk_only_nodes

    def of_type(self, kind: str) -> list[GraphNode]:
        return [node for node in self.nodes if node.feature_type == kind]

    def features(self) -> list[GraphNode]:
        """Those of every kind, the one with the most influence on the logits first.

        A node's `influence` is cumulative over the nodes in falling order, so the strongest has
        the lowest.
        """
        found = [node for node in self.nodes if node.is_feature]
        return sorted(found, key=lambda node: node.influence or 0.0)

    @model_validator(mode="after")
    def _features_are_whole(self) -> Self:
        length = len(self.metadata.prompt_tokens)
        for node in self.nodes:
            if node.is_feature and (
                node.influence is None
                or node.activation is None
                or node.node_id.count("_") < 2
                or not 0 <= node.ctx_idx < length
            ):
                raise ValueError(f"feature {node.node_id[:50]!r} is not as features are")
        for name, node in self.qk_only_nodes.items():
            if node.is_feature and node.node_id.count("_") < 2:
                raise ValueError(f"feature {name[:50]!r} is not as features are")
        return self
