"""One forward pass of a prompt, from which everything that is held still is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import errors
from attribution.complete.local_model import LocalCompleteModel, Sources
from attribution.complete.modules import Attention, CompleteModel, Lorsa, Transcoder
from attribution.freezing import run_and_record


class _Sublayer(NamedTuple):
    """The active features of a module, by position and index, and what it leaves unexplained."""

    features: Tensor  # (n, 2) int64: position, index
    activations: Tensor  # (n,) float32
    vectors: Tensor  # (n, d_model) float32, what each writes
    error: Tensor  # (n_pos, d_model) float32
    is_finite: Tensor  # (), whether all activations are
    gates: Tensor | None  # (2, n)
    attention: Attention | None


@torch.no_grad()
def freeze(
    model: CompleteModel, tokens: Tensor, check: Callable[[], None] = lambda: None
) -> LocalCompleteModel:
    """Run `model` on `tokens` once and keep its linear part; it is left as it came.

    Args:
        tokens: (n_pos,) ids. No special token is put in front, and no position is left out.
        check: called before each sublayer's features are found; raises to stop.

    Raises:
        errors.NotFinite: the model's numbers on this prompt overflow in its dtype.
    """
    language_model, cfg = model.language_model, model.cfg
    tokens = tokens.to(cfg.device)
    hooks = ("ln1.hook_normalized", "ln2.hook_normalized", "hook_attn_out", "hook_mlp_out")
    scales = ("ln1.hook_scale", "ln2.hook_scale")
    names = [f"blocks.{n}.{hook}" for n in range(cfg.n_layers) for hook in (*hooks, *scales)]
    logits, seen = run_and_record(
        language_model, tokens, [*names, "hook_embed", "ln_final.hook_scale"]
    )
    if not logits.isfinite().all():
        raise errors.NotFinite.of("the model's logits after this prompt", cfg.dtype)
    inverse_scales = torch.stack(
        [
            1 / seen[f"blocks.{n}.{hook}"].float().flatten()
            for n in range(cfg.n_layers)
            for hook in scales
        ]
    )
    sublayers = []
    for layer, (lorsa, transcoder) in enumerate(zip(model.lorsas, model.transcoders, strict=True)):
        read, written = [
            [seen.pop(f"blocks.{layer}.{hook}")[0].float() for hook in pair]
            for pair in (hooks[:2], hooks[2:])
        ]
        check()
        sublayers.append(_freeze_lorsa(lorsa, read[0], written[0]))
        check()
        sublayers.append(_freeze_transcoder(transcoder, read[1], written[1]))
    # Asked once: to wait for the device's answer in each sublayer takes longer than the sublayer.
    if not torch.stack([sublayer.is_finite for sublayer in sublayers]).all():
        raise errors.NotFinite.of("the features' activations on this prompt", cfg.dtype)
    gain = getattr(language_model.ln_final, "w", None)
    last_scale = seen["ln_final.hook_scale"].float().flatten()[-1]
    return LocalCompleteModel(
        model=model,
        tokens=tokens,
        logits=logits,
        sources=_sorted_sources(sublayers, seen["hook_embed"][0].float()),
        active_features=_with_sublayers([sublayer.features for sublayer in sublayers]),
        activation_values=torch.cat([sublayer.activations for sublayer in sublayers]),
        gates=_joined_gates(sublayers),
        attention=[sub.attention for sub in sublayers if sub.attention is not None],
        inverse_scales=inverse_scales,
        final_weight=torch.ones(cfg.d_model, device=tokens.device) / last_scale
        if gain is None
        else gain.detach().float() / last_scale,
    )


def _freeze_lorsa(lorsa: Lorsa, x: Tensor, output: Tensor) -> _Sublayer:
    attention = lorsa.attend(x)
    return _frozen(lorsa, lorsa.encode(x, attention), output)._replace(attention=attention)


def _freeze_transcoder(transcoder: Transcoder, x: Tensor, output: Tensor) -> _Sublayer:
    before, gate = transcoder.before_gate(x)
    gated = before if gate is None else before * gate
    frozen = _frozen(transcoder, transcoder.activation(gated, transcoder.decoder), output)
    if gate is None:
        return frozen
    positions, indices = frozen.features.T
    value, gate = before[positions, indices], gate[positions, indices]
    return frozen._replace(gates=torch.stack([gate, value * gate * (1 - gate)]))


def _frozen(module: Any, activations: Tensor, output: Tensor) -> _Sublayer:
    """Take the active features of (n_pos, d_sae), and compare what they write with the output."""
    is_active = activations.abs() > 0  # a NaN isn't, or it would have all vectors read
    features = is_active.nonzero()
    positions, indices = features.T
    values = activations[positions, indices]
    vectors = module.decoder.rows(indices).float() * values[:, None]
    n_active = is_active.sum(1)
    # Summed always in the same order, which `index_add_` on a CUDA device is not.
    reconstruction = torch.segment_reduce(
        vectors, "sum", lengths=n_active, axis=0, initial=0, unsafe=True
    )
    error = output - reconstruction - module.b_D
    is_finite = activations.isfinite().all()
    return _Sublayer(features, values, vectors, error, is_finite, None, None)


def _sorted_sources(sublayers: list[_Sublayer], embeddings: Tensor) -> Sources:
    """Bring the sources, which come by sublayer, in the order of positions."""
    n_pos, device = len(embeddings), embeddings.device
    everywhere = torch.arange(n_pos)
    positions = torch.cat([sublayer.features[:, 0] for sublayer in sublayers]).cpu()
    n_active, n_sublayers = [len(own.features) for own in sublayers], len(sublayers)
    # In the order of the columns: features, errors, tokens.
    by_column = torch.cat([positions, everywhere.repeat(n_sublayers + 1)])
    numbers = torch.arange(n_sublayers)
    sublayer_of = torch.cat(
        [
            numbers.repeat_interleave(torch.tensor(n_active)),
            numbers.repeat_interleave(n_pos),
            torch.full((n_pos,), -1),
        ]
    )
    keys = by_column * (n_sublayers + 1) + sublayer_of + 1
    order = keys.argsort(stable=True)
    of_columns = torch.empty_like(order)
    of_columns[order] = torch.arange(len(order))
    vectors = torch.empty(len(order), embeddings.shape[1], device=device)
    places = of_columns.to(device)
    of_features, of_errors, of_tokens = places.split([sum(n_active), n_sublayers * n_pos, n_pos])
    for at, sublayer in zip(of_features.split(n_active), sublayers, strict=True):
        vectors[at] = sublayer.vectors
    vectors[of_errors] = torch.cat([sublayer.error for sublayer in sublayers])
    vectors[of_tokens] = embeddings
    starts = torch.searchsorted(
        keys[order], everywhere[:, None] * (n_sublayers + 1) + torch.arange(n_sublayers + 2)
    )
    return Sources(
        vectors, by_column[order].to(device), sublayer_of[order].to(device), places, starts
    )


def _with_sublayers(features: list[Tensor]) -> Tensor:
    """Active features (n_active, 3) of those of each sublayer (n, 2)."""
    return torch.cat(
        [
            torch.cat([torch.full_like(own[:, :1], sublayer), own], 1)
            for sublayer, own in enumerate(features)
        ]
    )


def _joined_gates(sublayers: list[_Sublayer]) -> Tensor | None:
    """The gates (2, n_active) of all features, of those without a gate 1 and 0."""
    if all(sublayer.gates is None for sublayer in sublayers):
        return None
    free = [
        torch.stack([torch.ones_like(own.activations), torch.zeros_like(own.activations)])
        if own.gates is None
        else own.gates
        for own in sublayers
    ]
    return torch.cat(free, 1)
