"""A small graph and a steer of the loaded model, whose numbers are computed in two ways.

Features' activations and the edges from the last layer into the logits need only a few rows of the
weights, so they are computed again in float32 on the CPU. How far both results may be apart follows
from the dtype that the model runs in. Numbers that a graph, a forward pass and a steer all give are
compared too. Peak memory is that of a small graph.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import attribution
import steering
from attribution.complete.modules import CompleteModel
from attribution.features import find_active_features
from attribution.salient_logits import probabilities_of
from attribution.transcoder_layer import TranscoderLayer
from steering import Intervention, Options
from steering.engine import HookPoint, Passes
from steering.passes import passes_of

logger = logging.getLogger(__name__)

# How far log-probabilities of two runs may be apart. A GPU may add in another order, and the last
# bit of a bfloat16 logit between 32 and 64 is 0.25.
_ROUNDING = 0.5

_FEATURE_NODES = 64
_STRONGEST = 4  # features of each layer that are checked
_SMALLEST = 1e-6  # less likely tokens are compared as if they had this probability

# What each layer's features read, and what they stand in for: (n_positions, d_model).
_Recorded = Mapping[HookPoint, Tensor]


class InconsistentError(Exception):
    """Two ways to compute one number disagree; the message says which."""


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

    A complete model is run twice, and neither attributed nor steered.

    A set of transcoders that explains nothing of the model leads only to a warning in the log.

    Raises:
        InconsistentError: numbers disagree with each other or with float32.
        errors.NotFinite: some overflow.
    """
    first = steering.next_token_logits(model, ids)
    if isinstance(model, CompleteModel):
        _check_second_run(first, steering.next_token_logits(model, ids))
        return
    graph = attribution.attribute(torch.tensor(ids), model, max_feature_nodes=_FEATURE_NODES)
    passes = passes_of(model)
    active = _Active(graph.active_features.cpu(), graph.activation_values.float().cpu())
    layers = range(model.cfg.n_layers)
    points: list[HookPoint] = [(layer, "feature input") for layer in layers]
    points += [(layer, "feature output") for layer in layers]
    with torch.inference_mode():
        recorded = passes.record(ids, dict.fromkeys(points, _last_row))
        _check_logits(graph, first)
        strongest = [active.in_layer(layer).strongest() for layer in layers]
        for layer, features in enumerate(strongest):
            _check_activations(passes, layer, features, recorded[layer, "feature input"], ids)
        _check_edges_into_logits(graph, active, passes, ids)
        _check_steer(model, ids, strongest)
        _warn_of_a_set_that_explains_nothing(passes, recorded)
        _check_second_run(first, steering.next_token_logits(model, ids))


def _last_row(acts: Tensor) -> Tensor:
    return acts[-1].clone()


def _tolerance(dtype: torch.dtype) -> float:
    """How far a sum may be off, as a share of the sum of its terms' sizes.

    The terms and the sum are rounded to the dtype, and added in float32.
    """
    return 4 * torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32).eps


def _probability_tolerance(dtype: torch.dtype) -> float:
    """How much probability may move when a pass runs in another batch.

    In bfloat16 a quarter, since the last bit of a logit between 16 and 64 is 0.1 to 0.25.
    """
    return min(0.25, 4096 * torch.finfo(dtype).eps)


def _check_logits(graph: Any, logits: Tensor) -> None:
    """A graph's logit nodes have the probabilities that a forward pass gives."""
    probabilities = probabilities_of(logits).cpu()[graph.logit_token_ids.cpu()]
    change = float((graph.logit_probabilities.cpu() - probabilities).abs().sum())
    if not change <= _probability_tolerance(logits.dtype):
        raise InconsistentError(
            f"a graph and a forward pass differ by {change:.2g} in next-token probability"
        )


def _check_second_run(first: Tensor, second: Tensor) -> None:
    first, second = (probabilities_of(run).clamp_min(_SMALLEST).log() for run in (first, second))
    change = float((second - first).abs().max())
    if not change <= _ROUNDING:
        raise InconsistentError(
            "it predicts otherwise on its second run than on its first (log-probabilities change "
            f"by up to {change:.2g}), as if something of the first run were left over"
        )


def _check_activations(
    passes: Passes, layer: int, active: _Active, read: Tensor, ids: Sequence[int]
) -> None:
    """A graph's activations are those that a steer reads, and that the encoder's rows give."""
    _, positions, indices = active.features.T
    transcoder = TranscoderLayer(passes.transcoders, layer)
    rows = transcoder.rows("W_enc", indices.to(read.device))
    inputs = read.to(rows.dtype).cpu().float()[positions]
    terms, bias = inputs * rows.cpu().float(), transcoder.b_enc.cpu().float()[indices]
    bound = _tolerance(rows.dtype) * (terms.abs().sum(1) + bias.abs())
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
    towards = _logit_gradients(graph, model, ids)  # (n_logits, d_model)
    expected, bound = towards @ written.T, towards.abs() @ written.abs().T
    edges = graph.adjacency_matrix.cpu()[-len(towards) :, : len(at_end)][:, at_end]
    off = (edges - expected).abs()
    if not (off <= _tolerance(rows.dtype) * bound).all():
        raise InconsistentError(
            f"edges from the last layer's features into the logits are off by up to "
            f"{float(off.max()):.2g} from float32"
        )


def _logit_gradients(graph: Any, model: Any, ids: Sequence[int]) -> Tensor:
    """Gradients of a graph's logits, less the mean logit, before the final norm, in float32."""
    scales: list[Tensor] = []
    with model.hooks([("ln_final.hook_scale", lambda scale, hook: scales.append(scale))]):  # noqa: ARG005
        model(torch.tensor([list(ids)], device=model.cfg.device))
    W_U = model.unembed.W_U
    mean = W_U.mean(-1, dtype=torch.float32).cpu()
    gradients = W_U[:, graph.logit_token_ids.to(W_U.device)].cpu().float().T - mean
    norm = model.ln_final
    if hasattr(norm, "w"):
        gradients = gradients * norm.w.cpu().float()
    if type(norm).__name__.startswith("LayerNorm"):
        gradients = gradients - gradients.mean(-1, keepdim=True)
    return gradients / scales[-1][0, -1].cpu().float()


def _check_steer(model: Any, ids: Sequence[int], strongest: Sequence[_Active]) -> None:
    """Features held at their own activations change nothing; ablated, they leave finite numbers."""
    own = [intervention for active in strongest for intervention in active.interventions()]
    cfg = model.cfg
    options = Options(n_tokens=min(1, cfg.n_ctx - len(ids)), top_k=cfg.d_vocab)
    default, held = (
        torch.zeros(cfg.d_vocab).scatter(0, side.top_ids[0], side.top_probs[0])
        for side in steering.generate_both(model, ids, own, options)
    )
    change = float((held - default).abs().sum() / 2)
    if not change <= _probability_tolerance(cfg.dtype):
        raise InconsistentError(
            f"features set to the activations that they have move {change:.2g} of the next token's "
            "probability"
        )
    ablated = [replace(intervention, value=0.0) for intervention in own]
    # A feature of each layer ablated on the generated tokens too, so that their passes have hooks.
    ablated += [Intervention(layer, 0, None, 0.0) for layer in range(cfg.n_layers)]
    steering.generate(model, ids, ablated, options)


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
