"""An attribution graph of a complete replacement model, and the traces of its attention scores.

Sublayer `2l` is the attention of layer l, sublayer `2l + 1` its MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from circuit_tracer.attribution.targets import LogitTarget

SourceKind = Literal["embedding", "error", "feature", "bias_q", "bias_k", "bias_d"]


@dataclass(frozen=True)
class CompleteGraph:
    """Nodes in this order: selected features, errors, tokens, logits.

    Errors are sorted by sublayer, then position. The adjacency matrix has a row a target and a
    column a source; the rows of errors and tokens are zero.
    """

    input_tokens: Tensor  # (n_pos,) int64
    logit_targets: list[LogitTarget]
    logit_probabilities: Tensor  # (n_logits,) float32
    vocab_size: int
    active_features: Tensor  # (n_active, 3) int64: sublayer, position, index; sorted by these
    activation_values: Tensor  # (n_active,) float32
    selected_features: Tensor  # (n_selected,) int64 into active_features, ascending
    adjacency_matrix: Tensor  # (n_nodes, n_nodes) float32
    cfg: Any  # the language model's configuration

    @property
    def n_pos(self) -> int:
        return len(self.input_tokens)

    @property
    def n_sublayers(self) -> int:
        return 2 * self.cfg.n_layers


@dataclass(frozen=True, slots=True)
class Contributor:
    """A node that an attention score is made of, whether or not it is in the graph.

    A bias is one of this Lorsa's queries or keys, or of the decoder of a lower sublayer.
    """

    kind: SourceKind
    sublayer: int  # -1 for an embedding
    position: int
    index: int  # of a feature in its module, a token in the vocabulary; -1 for others
    activation: float | None = None  # of a feature


@dataclass(frozen=True)
class QKTrace:
    """Why a head attends from a position to the one that it attends to most, largest value first.

    Values are parts of the attention score, before the softmax.
    """

    key_position: int
    pairs: list[tuple[Contributor, Contributor, float]]  # query's side, key's side
    q_marginal: list[tuple[Contributor, float]]
    k_marginal: list[tuple[Contributor, float]]


QKTraces: TypeAlias = Mapping[int, QKTrace]  # by the graph's row of a Lorsa feature
