"""A small graph and a steer of the loaded model, whose numbers are computed in two ways.

Features' activations and the edges from the last layer into the logits need only a few rows of the
weights, so they are computed again in float32 on the CPU. How far both results may be apart follows
from the dtype that the model runs in. Numbers that a graph, a forward pass and a steer all give are
compared too. Peak memory is that of a small graph.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import attribution
import steering
from attribution.complete.modules import CompleteModel
from attribution.features import find_active_features
from attribution.transcoder_layer import TranscoderLayer
from serving import complete_self_test
from serving.consistency import (
    InconsistentError,
    check_logits,
    check_second_run,
    check_steer,
    logit_gradients,
    tolerance,
)
from steering import Intervention
from steering.engine import HookPoint, Passes
from steering.passes import passes_of

logger = logging.getLogger(__name__)

_FEATURE_NODES = 64
_STRONGEST = 4  # features of each layer that are checked

# What each layer's features read, and what they stand in for: (n_positions, d_model).
_Recorded = Mapping[HookPoint, Tensor]


@dataclass(frozen=True)
class _Active:
    """The active features of a graph, on the CPU."""

    features: Tensor  # (n, 3): layer, position, index
    values: Tensor  # (n,) float32

    def __getitem__(self, chosen: Tensor) -> "_Active":
        return _Active(self.features[chosen], self.values[chosen])

    def in_layer(self, layer: int) -> "_Active":
        return self[self.features[:, 0] == layer]

    def strongest(self) -> "_Active":
        return self[self.values.topk(min(_STRONGEST, len(self.values))).indices]

    def interventions(self) -> list[Intervention]:
        """Each feature held at its own activation."""
        return [
            Intervention(layer, index, position, value)
            for (layer, position, index), value in zip(
                self.features.tolist(), self.values.tolist(), strict=True
            )
        ]


def run(model: Any, ids: Sequence[int]) -> None:
    """Run the model, attribute and steer a prompt, run the model again, and check the numbers.

    A set of transcoders that explains nothing of the model leads only to a warning in the log.

    Raises:
        InconsistentError: numbers disagree with each other or with float32.
        UnexplainedError: a complete set makes nearly nothing of the model.
        errors.NotFinite: some overflow.
    """
    if isinstance(model, CompleteModel):
        complete_self_test.run(model, ids)
        return
    first = steering.next_token_logits(model, ids)
    graph = attribution.attribute(torch.tensor(ids), model, max_feature_nodes=_FEATURE_NODES)
    passes = passes_of(model)
    active = _Active(graph.active_features.cpu(), graph.activation_values.float().cpu())
    layers = range(model.cfg.n_layers)
    points: list[HookPoint] = [(layer, "feature input") for layer in layers]
    points += [(layer, "feature output") for layer in layers]
    with torch.inference_mode():
        recorded = passes.record(ids, dict.fromkeys(points, _last_row))
        check_logits(graph.logit_token_ids, graph.logit_probabilities, first)
        strongest = [active.in_layer(layer).strongest() for layer in layers]
        for layer, features in enumerate(strongest):
            _check_activations(passes, layer, features, recorded[layer, "feature input"], ids)
        _check_edges_into_logits(graph, active, passes, ids)
        own = [intervention for features in strongest for intervention in features.interventions()]
        check_steer(model, ids, own)
        _warn_of_a_set_that_explains_nothing(passes, recorded)
        check_second_run(first, steering.next_token_logits(model, ids))


def _last_row(acts: Tensor) -> Tensor:
    return acts[-1].clone()


def _check_activations(
    passes: Passes, layer: int, active: _Active, read: Tensor, ids: Sequence[int]
) -> None:
    """A graph's activations are those that a steer reads, and that the encoder's rows give."""
    _, positions, indices = active.features.T
    transcoder = TranscoderLayer(passes.transcoders, layer)
    rows = transcoder.rows("W_enc", indices.to(read.device))
    inputs = read.to(rows.dtype).cpu().float()[positions]
    terms, bias = inputs * rows.cpu().float(), transcoder.b_enc.cpu().float()[indices]
    bound = tolerance(rows.dtype) * (terms.abs().sum(1) + bias.abs())
    features = [(layer, position, index) for layer, position, index in active.features.tolist()]
    steered = steering.feature_activations(passes.model, ids, features)
    for way, other in (("in float32", terms.sum(1) + bias), ("in a steer", torch.tensor(steered))):
        off = (active.values - other).abs()
        if not (off <= bound).all():
            raise InconsistentError(
                f"features of layer {layer} have other activations in a graph than {way}: off by "
                f"up to {float(off.max()):.2g}, where {float(bound.max()):.2g} would be rounding"
            )


def _check_edges_into_logits(
    graph: Any, active: _Active, passes: Passes, ids: Sequence[int]
) -> None:
    """Check the edges from features of the last layer and position into the logits.

    Only the final norm lies between them, so each edge is one product. Checked on TransformerLens
    alone, and not where another norm follows what features write.
    """
    model, cfg = passes.model, passes.model.cfg
    if model.backend == "nnsight" or (
        cfg.use_normalization_before_and_after
        and model.original_feature_output_hook != "hook_mlp_out"
    ):
        return
    chosen = active[graph.selected_features.cpu()]
    layers, positions, _ = chosen.features.T
    at_end = (layers == cfg.n_layers - 1) & (positions == len(ids) - 1)
    if not at_end.any():
        return
    features = chosen[at_end]
    [rows] = TranscoderLayer(passes.transcoders, cfg.n_layers - 1).decoders(features.features[:, 2])
    written = rows.cpu().float() * features.values[:, None]  # (n, d_model)
    towards = logit_gradients(graph.logit_token_ids, model, ids)  # (n_logits, d_model)
    expected, bound = towards @ written.T, towards.abs() @ written.abs().T
    edges = graph.adjacency_matrix.cpu()[-len(towards) :, : len(at_end)][:, at_end]
    off = (edges - expected).abs()
    if not (off <= tolerance(rows.dtype) * bound).all():
        raise InconsistentError(
            f"edges from the last layer's features into the logits are off by up to "
            f"{float(off.max()):.2g} from float32"
        )


def _warn_of_a_set_that_explains_nothing(passes: Passes, recorded: _Recorded) -> None:
    """Warn where the transcoders' error is larger than what they stand in for, in most layers."""
    zero_positions = passes.model.zero_positions
    layers = range(passes.model.cfg.n_layers)
    read = torch.stack([recorded[layer, "feature input"] for layer in layers])
    _, replaced = find_active_features(
        passes.transcoders, read, zero_positions, lambda _layer, v, _at: v
    )
    steerable = torch.ones(read.shape[1], dtype=torch.bool)
    steerable[zero_positions] = False
    shares = []
    for layer, sums in enumerate(replaced):
        output = recorded[layer, "feature output"].float()
        shares.append(float((output - sums)[steerable].norm() / output[steerable].norm()))
    logger.debug("the transcoders' error is %s of what they stand in for, by layer", shares)
    usual = float(torch.tensor(shares).median())
    if usual > 1:
        logger.warning(
            "in most layers the transcoders' error is larger than what they stand in for (%.3g "
            "times): they may be those of another model, or their activation function another one; "
            "see MODEL_ID and TRANSCODER_SET",
            usual,
        )
