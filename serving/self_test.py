"""A small graph and a steer of the loaded model, whose numbers are computed in two ways.

Features' activations and the edges from the last layer into the logits need only a few rows of the
weights, so they are computed again in float32 on the CPU. How far both results may be apart follows
from the dtype that the model runs in. Numbers that a graph, a forward pass and a steer all give are
compared too. Peak memory is that of a small graph.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from torch import Tensor

import attribution
import steering
from attribution.features import find_active_features
from attribution.salient_logits import probabilities_of
from steering import Intervention
from steering.engine import Hook, Passes
from steering.features import encoder_rows
from steering.passes import passes_of

logger = logging.getLogger(__name__)

# How far log-probabilities of two runs may be apart. A GPU may add in another order, and the last
# bit of a bfloat16 logit between 32 and 64 is 0.25.
_ROUNDING = 0.5

_FEATURE_NODES = 64
_STRONGEST = 4  # features of each layer that are checked
_SMALLEST = 1e-6  # less likely tokens are compared as if they had this probability


class InconsistentError(Exception):
    """Two ways to compute one number disagree; the message says which."""


@dataclass(frozen=True)
class _Active:
    """The active features of a graph: (n,) each, on the CPU."""

    layer: Tensor
    position: Tensor
    index: Tensor
    value: Tensor  # float32

    @classmethod
    def of(cls, graph: Any) -> "_Active":
        layer, position, index = graph.active_features.cpu().T
        return cls(layer, position, index, graph.activation_values.float().cpu())

    def __getitem__(self, chosen: Tensor) -> "_Active":
        parts = (self.layer, self.position, self.index, self.value)
        return _Active(*(part[chosen] for part in parts))

    def strongest_of(self, layer: int) -> "_Active":
        mine = (self.layer == layer).nonzero().flatten()
        return self[mine[self.value[mine].topk(min(_STRONGEST, len(mine))).indices]]

    def names(self) -> list[tuple[int, int, int]]:
        """(layer, position, index) of each."""
        return [tuple(n) for n in torch.stack([self.layer, self.position, self.index], 1).tolist()]


def run(model: Any, ids: Sequence[int]) -> None:
    """Run the model, attribute and steer a prompt, run the model again, and check the numbers.

    A set of transcoders that explains nothing of the model leads only to a warning in the log.

    Raises:
        InconsistentError: numbers disagree with each other or with float32.
        errors.NotFinite: some overflow.
    """
    first = steering.next_token_logits(model, ids)
    graph = attribution.attribute(torch.tensor(ids), model, max_feature_nodes=_FEATURE_NODES)
    passes, active = passes_of(model), _Active.of(graph)
    with torch.inference_mode():
        read, written = _record(passes, ids)
        _check_logits(graph, first)
        strongest = [active.strongest_of(layer) for layer in range(model.cfg.n_layers)]
        for layer, features in enumerate(strongest):
            steered = steering.feature_activations(model, ids, features.names())
            _check_activations(passes, layer, features, read[layer], torch.tensor(steered))
        _check_edges_into_logits(graph, active, model, ids)
        _check_steer(model, ids, strongest)
        _warn_of_a_set_that_explains_nothing(passes, read, written)
        _check_second_run(first, steering.next_token_logits(model, ids))


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


def _record(passes: Passes, ids: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """What the features of each layer read, and what they stand in for, (n_positions, d_model)."""
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}

    def keep(store: dict[int, Tensor], layer: int) -> Any:
        def function(acts: Tensor) -> None:
            store[layer] = acts[-1].clone()

        return function

    layers = range(passes.model.cfg.n_layers)
    hooks = [Hook(layer, "feature input", keep(read, layer)) for layer in layers]
    hooks += [Hook(layer, "feature output", keep(written, layer)) for layer in layers]
    passes.read(torch.tensor([list(ids)], device=passes.model.cfg.device), hooks)
    return [read[layer] for layer in layers], [written[layer] for layer in layers]


def _check_logits(graph: Any, logits: Tensor) -> None:
    tokens = torch.tensor([target.vocab_idx for target in graph.logit_targets])
    change = float(
        (graph.logit_probabilities.cpu() - probabilities_of(logits).cpu()[tokens]).abs().sum()
    )
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
    passes: Passes, layer: int, features: _Active, read: Tensor, steered: Tensor
) -> None:
    """A graph's activations are those that a steer reads, and that the encoder's rows give."""
    transcoders = passes.transcoders
    cross_layer = isinstance(transcoders, CrossLayerTranscoder)
    b_enc = transcoders.b_enc[layer] if cross_layer else transcoders[layer].b_enc
    rows = encoder_rows(transcoders, layer, features.index.to(read.device))
    inputs = read.to(rows.dtype).cpu().float()[features.position]
    terms, bias = inputs * rows.cpu().float(), b_enc.cpu().float()[features.index]
    bound = _tolerance(rows.dtype) * (terms.abs().sum(1) + bias.abs())
    for way, other in (("in float32", terms.sum(1) + bias), ("in a steer", steered)):
        off = (features.value - other).abs()
        if not (off <= bound).all():
            raise InconsistentError(
                f"features of layer {layer} have other activations in a graph than {way}: off by "
                f"up to {float(off.max()):.2g}, where {float(bound.max()):.2g} would be rounding"
            )


def _check_edges_into_logits(graph: Any, active: _Active, model: Any, ids: Sequence[int]) -> None:
    """Check the edges from features of the last layer and position into the logits.

    Only the final norm lies between them, so each edge is one product. Checked on TransformerLens
    alone, and not where another norm follows what features write.
    """
    cfg = model.cfg
    if model.backend == "nnsight" or (
        cfg.use_normalization_before_and_after
        and model.original_feature_output_hook != "hook_mlp_out"
    ):
        return
    chosen = active[graph.selected_features.cpu()]
    at_end = (chosen.layer == cfg.n_layers - 1) & (chosen.position == len(ids) - 1)
    if not at_end.any():
        return
    features = chosen[at_end]
    rows = model.transcoders._get_decoder_vectors(cfg.n_layers - 1, features.index)
    written = rows.cpu().float().flatten(1) * features.value[:, None]  # (n, d_model)
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
    tokens = torch.tensor([target.vocab_idx for target in graph.logit_targets])
    mean = W_U.mean(-1, dtype=torch.float32).cpu()
    gradients = W_U[:, tokens.to(W_U.device)].cpu().float().T - mean
    norm = model.ln_final
    if hasattr(norm, "w"):
        gradients = gradients * norm.w.cpu().float()
    if type(norm).__name__.startswith("LayerNorm"):
        gradients = gradients - gradients.mean(-1, keepdim=True)
    return gradients / scales[-1][0, -1].cpu().float()


def _check_steer(model: Any, ids: Sequence[int], strongest: Sequence[_Active]) -> None:
    """Features held at their own activations change nothing; ablated, they leave finite numbers."""
    features = [
        (name, value)
        for layer in strongest
        for name, value in zip(layer.names(), layer.value.tolist(), strict=True)
    ]
    own = [Intervention(layer, index, at, value) for (layer, at, index), value in features]
    options: steering.Options = {
        "n_tokens": min(1, model.cfg.n_ctx - len(ids)),
        "top_k": model.cfg.d_vocab,
        "temperature": 0,
        "freq_penalty": 0,
        "seed": None,
        "freeze_attention": False,
    }
    default, held = steering.generate_both(model, ids, own, **options)
    first = [torch.zeros(model.cfg.d_vocab) for _ in range(2)]
    for side, generation in zip(first, (default, held), strict=True):
        side[generation.top_ids[0]] = generation.top_probs[0]
    change = float((first[1] - first[0]).abs().sum() / 2)
    if not change <= _probability_tolerance(model.cfg.dtype):
        raise InconsistentError(
            f"features set to the activations that they have move {change:.2g} of the next token's "
            "probability"
        )
    ablated = [Intervention(layer, index, at, 0.0) for (layer, at, index), _ in features]
    # A feature of each layer ablated on the generated tokens too, so that their passes have hooks.
    ablated += [Intervention(layer, 0, None, 0.0) for layer in range(model.cfg.n_layers)]
    steering.generate(model, ids, ablated, **options)


def _warn_of_a_set_that_explains_nothing(
    passes: Passes, read: Sequence[Tensor], written: Sequence[Tensor]
) -> None:
    """Warn where the transcoders' error is larger than what they stand in for, in most layers."""
    zero_positions = passes.model.zero_positions
    _, replaced = find_active_features(
        passes.transcoders, torch.stack(list(read)), zero_positions, lambda _layer, v, _at: v
    )
    steerable = torch.ones(len(read[0]), dtype=torch.bool)
    steerable[zero_positions] = False
    shares = [
        float((output.float() - sums)[steerable].norm() / output.float()[steerable].norm())
        for output, sums in zip(written, replaced, strict=True)
    ]
    logger.debug("the transcoders' error is %s of what they stand in for, by layer", shares)
    usual = float(torch.tensor(shares).median())
    if usual > 1:
        logger.warning(
            "in most layers the transcoders' error is larger than what they stand in for (%.3g "
            "times): they may be those of another model, or their activation function another one; "
            "see MODEL_ID and TRANSCODER_SET",
            usual,
        )
