"""The rules by which the Neuronpedia webapp checks answers and graphs.

They are those of apps/webapp/lib/utils/graph.ts and app/api/graph (its graph-schema.json) in
github.com/hijohnnylin/neuronpedia.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Rule(BaseModel):
    """Fields besides these are let through, as by its validators; types are taken strictly."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Required = Annotated[str, Field(min_length=1)]  # a required string may not be empty
Number = float | int


class TopLogit(_Rule):
    token: Required
    prob: Number


class LogitsOfToken(_Rule):
    token: Required
    top_logits: list[TopLogit]


class Steered(_Rule):
    DEFAULT_GENERATION: Required
    STEERED_GENERATION: Required
    DEFAULT_LOGITS_BY_TOKEN: list[LogitsOfToken]
    STEERED_LOGITS_BY_TOKEN: list[LogitsOfToken]


class SalientLogit(_Rule):
    token: str
    token_id: int
    probability: Number


class Preview(_Rule):
    prompt: str
    input_tokens: list[str]
    salient_logits: list[SalientLogit]
    total_salient_tokens: int
    cumulative_probability: Number


class Message(_Rule):
    role: Required
    content: str


class Parsed(_Rule):
    messages: list[Message] | None
    prompt: str
    unsteerable_positions: list[int]


class Generator(_Rule):
    name: str
    version: str
    url: str


class Info(_Rule):
    creator_name: str = ""
    creator_url: str = ""
    source_urls: list[str]
    generator: Generator
    create_time_ms: Number


class GenerationSettings(_Rule):
    max_n_logits: int
    desired_logit_prob: Number
    batch_size: int
    max_feature_nodes: int
    enable_qk_tracing: bool = False
    qk_top_fraction: Number = 1
    qk_topk: int = 1


class FeatureDetails(_Rule):
    neuronpedia_source_set: str = ""
    neuronpedia_lorsa_source_set: str = ""


class PruningSettings(_Rule):
    node_threshold: Number
    edge_threshold: Number


class Metadata(_Rule):
    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str
    node_threshold: Number
    info: Info
    generation_settings: GenerationSettings
    pruning_settings: PruningSettings
    feature_details: FeatureDetails = FeatureDetails()


class SubgraphState(_Rule):
    pinnedIds: list[str]
    supernodes: list[list[str]]
    linkType: str
    clickedId: str
    sg_pos: str


class QKTracingResults(_Rule):
    pair_wise_contributors: list[tuple[str, str, Number]]
    top_q_marginal_contributors: list[tuple[str, Number]]
    top_k_marginal_contributors: list[tuple[str, Number]]


class QKOnlyNode(_Rule):
    node_id: str
    feature: int | None = None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str
    activation: Number | None = None


class Node(_Rule):
    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str
    influence: Number | None = None
    activation: Number | None = None
    qk_tracing_results: QKTracingResults | None = None


class Link(_Rule):
    source: str
    target: str
    weight: Number


class GraphBody(_Rule):
    """A graph without its metadata."""

    qParams: SubgraphState
    nodes: list[Node]
    links: list[Link]
    qk_only_nodes: dict[str, QKOnlyNode] = {}


class Graph(GraphBody):
    metadata: Metadata
