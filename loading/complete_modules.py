"""A complete set's modules from their files: eager, or with decoders left on the disk.

Each tensor is read once, onto the device and into the dtype wanted, so that no more than one of
them is in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from attribution.complete.modules import (
    Activation,
    CompleteModel,
    Decoder,
    Lorsa,
    Rotary,
    Transcoder,
)
from loading import WeightsError
from loading.complete_config import LorsaConfig, TranscoderConfig
from loading.complete_files import THRESHOLD, Module
from loading.tensor_files import damage_named, read_tensor

# Bytes of decoders, in float32, whose norms are computed at once.
_NORM_BYTES = 64 << 20


@dataclass(frozen=True)
class Placement:
    """Where modules go, and what of them stays on the disk."""

    device: torch.device
    dtype: torch.dtype
    lazy_decoder: bool


def read_transcoder(module: Module[TranscoderConfig], placement: Placement) -> Transcoder:
    """A transcoder from its checked files.

    Raises:
        WeightsError: the file is damaged.
    """
    reader = _Reader(module, placement)
    has_glu = module.config.use_glu_encoder
    return Transcoder(
        W_E=reader.rows_of_columns("W_E"),
        b_E=reader.tensor("b_E"),
        b_D=reader.decoder_bias(),
        decoder=reader.decoder("W_D"),
        activation=reader.activation(),
        W_E_glu=reader.rows_of_columns("W_E_glu") if has_glu else None,
        b_E_glu=reader.tensor("b_E_glu") if has_glu else None,
    )


def read_lorsa(module: Module[LorsaConfig], placement: Placement) -> Lorsa:
    """A Lorsa from its checked files.

    Raises:
        WeightsError: the file is damaged.
    """
    config = module.config
    reader = _Reader(module, placement)
    heads = partial(reader.of_heads, config.n_qk_heads)
    has_norm = config.use_post_qk_ln
    return Lorsa(
        W_Q=heads("W_Q"),
        W_K=heads("W_K"),
        b_Q=heads("b_Q"),
        b_K=heads("b_K"),
        W_V=reader.tensor("W_V"),
        b_V=reader.tensor("b_V"),
        b_D=reader.decoder_bias(),
        decoder=reader.decoder("W_O"),
        activation=reader.activation(),
        attn_scale=config.score_divisor,
        q_gain=heads("ln_q.w") if has_norm else None,
        k_gain=heads("ln_k.w") if has_norm else None,
        eps=config.eps,
        rotary=reader.rotary(config),
        n_ctx=config.n_ctx,
    )


class _Reader:
    def __init__(self, module: Module[Any], placement: Placement) -> None:
        self._module, self._placement = module, placement

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor as it is stored, in the placement's dtype or another."""
        device = str(self._placement.device)
        dtype = dtype or self._placement.dtype
        return read_tensor(self._module.weights, name, device=device, dtype=dtype)

    def rows_of_columns(self, name: str) -> Tensor:
        """A matrix that is stored with a feature a column, with a feature a row."""
        return self.tensor(name).T.contiguous()

    def of_heads(self, n_heads: int, name: str) -> Tensor:
        """A tensor of QK heads; a file may have one for several heads in a row."""
        tensor = self.tensor(name)
        repeats = n_heads // len(tensor)
        return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=0)

    def decoder_bias(self) -> Tensor:
        if self._module.config.use_decoder_bias:
            return self.tensor("b_D")
        placement = self._placement
        width = self._module.config.d_model
        return torch.zeros(width, device=placement.device, dtype=placement.dtype)

    def activation(self) -> Activation:
        config = self._module.config
        # A threshold decides alone which features are active: it isn't rounded.
        jumps = config.act_fn == "jumprelu"
        return Activation(
            config.act_fn,
            top_k=config.top_k if config.act_fn == "topk" else 0,
            threshold=self.tensor(THRESHOLD, torch.float32).exp() if jumps else None,
            times_decoder_norm=config.sparsity_include_decoder_norm,
        )

    def decoder(self, name: str) -> Decoder:
        with_norms = self._module.config.sparsity_include_decoder_norm
        if self._placement.lazy_decoder:
            stored = StoredDecoder(self._module.weights, name, self._placement)
            return stored.decoder(with_norms=with_norms)
        weight = self.tensor(name)
        # Norms would hold NaN too, and show it to whoever checks the weights in memory.
        if not with_norms and weight.sum(dtype=torch.float32).isnan():
            raise WeightsError(f"{self._module.weights} holds NaN in {name}: replace it")
        return eager_decoder(weight, with_norms=with_norms)

    def rotary(self, config: LorsaConfig) -> Rotary | None:
        """The tables of the file, which may be rounded ones, or without them those of float32."""
        if config.rotary_dimensions is None:
            return None
        if "rotary_cos" in self._module.tensors:
            cos, sin = (self.tensor(f"rotary_{part}", torch.float32) for part in ("cos", "sin"))
        else:
            computed = rotary_tables(config, config.rotary_dimensions)
            cos, sin = (table.to(self._placement.device) for table in computed)
        return Rotary(cos, sin, adjacent_pairs=config.rotary_adjacent_pairs)


def eager_decoder(weight: Tensor, *, with_norms: bool) -> Decoder:
    """A decoder in memory, (d_sae, d_model)."""
    norms = None
    if with_norms:
        norms = torch.cat([_norms(part) for part in weight.split(_rows_at_once(weight.shape[1]))])
    return Decoder(lambda features: weight[features.to(weight.device)], norms)


@dataclass(frozen=True)
class StoredDecoder:
    """A decoder that stays in its safetensors file, a feature a row."""

    path: Path
    name: str
    placement: Placement

    def decoder(self, *, with_norms: bool) -> Decoder:
        """The decoder; norms are computed at once, rows are read when they are asked for."""
        return Decoder(self.rows, self.norms() if with_norms else None)

    def rows(self, features: Tensor) -> Tensor:
        """The vectors of these features. No others are read, and one that is asked twice once."""
        device, dtype = self.placement.device, self.placement.dtype
        distinct, which = features.cpu().unique(return_inverse=True)
        if not len(distinct):
            return read_tensor(
                self.path, self.name, (slice(0, 0),), device=str(device), dtype=dtype
            )
        with damage_named(self.path), safe_open(self.path, framework="pt", device="cpu") as file:
            rows: Tensor = file.get_slice(self.name)[distinct]
        return rows[which].to(device, dtype)

    def norms(self) -> Tensor:
        """The norms of all vectors. The decoder is read once, a part after another."""
        device, dtype = self.placement.device, self.placement.dtype
        with damage_named(self.path), safe_open(self.path, framework="pt", device="cpu") as file:
            stored = file.get_slice(self.name)
            n_features, width = stored.get_shape()
            step = _rows_at_once(width)
            parts = [
                _norms(stored[start : start + step].to(device, dtype))
                for start in range(0, n_features, step)
            ]
        return torch.cat(parts)


def _rows_at_once(width: int) -> int:
    return max(1, _NORM_BYTES // (4 * width))


def _norms(rows: Tensor) -> Tensor:
    return rows.float().norm(dim=1)


def rotary_tables(config: LorsaConfig, n_dimensions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n_ctx, n_dimensions), in float32 as llamascopium computes them."""
    half = n_dimensions // 2
    positions = torch.arange(config.n_ctx, dtype=torch.float32)
    dimensions = torch.arange(half, dtype=torch.float32)
    once = config.rotary_base ** (dimensions / half)
    periods = once.repeat_interleave(2) if config.rotary_adjacent_pairs else once.repeat(2)
    angles = positions[:, None] / periods
    return angles.cos(), angles.sin()


def weights_of(model: CompleteModel) -> Iterator[tuple[str, Tensor]]:
    """The language model's weights, and those of the modules that are in memory."""
    yield from model.language_model.named_parameters()
    both: list[tuple[str, Sequence[Lorsa | Transcoder]]] = [
        ("lorsas", model.lorsas),
        ("transcoders", model.transcoders),
    ]
    for kind, modules in both:
        for layer, module in enumerate(modules):
            held = {**vars(module), "threshold": module.activation.threshold}
            held["decoder_norms"] = module.decoder.norms
            held |= vars(module.rotary) if isinstance(module, Lorsa) and module.rotary else {}
            for name, tensor in held.items():
                if isinstance(tensor, Tensor):
                    yield f"{kind}.{layer}.{name}", tensor
