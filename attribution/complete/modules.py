"""The modules of a complete replacement model: transcoders and Lorsas, and what each computes.

Shapes: d_model of the residual stream, d_sae features of a module, n_qk heads of a Lorsa with d_qk
dimensions each. Both kinds read the normalised residual stream before the norm's gain, and write
what is added to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from attribution.precision import product

ActivationName = Literal["relu", "topk", "jumprelu"]


def _read(x: Tensor, weights: Tensor) -> Tensor:
    """The float32 product (..., m) of inputs (..., d) and weights (d, m)."""
    return product(x.flatten(0, -2), weights).unflatten(0, x.shape[:-1])


@dataclass(frozen=True)
class Decoder:
    """The decoder vectors of a module's features, in memory or left on the disk."""

    # Feature indices (n,) on any device -> vectors (n, d_model) on the module's device.
    rows: Callable[[Tensor], Tensor]
    norms: Tensor | None  # (d_sae,) float32, where the activation needs them

    def part(self, indices: Tensor) -> Decoder:
        """The decoder of these features alone."""
        norms = None if self.norms is None else self.norms[indices]
        return Decoder(lambda some: self.rows(indices[some]), norms)


@dataclass(frozen=True)
class Activation:
    """How pre-activations become activations: which features of a position are active."""

    name: ActivationName
    top_k: int = 0  # of topk
    threshold: Tensor | None = None  # (d_sae,), of jumprelu: exp of what the file has
    times_decoder_norm: bool = False  # judged after a multiplication by the decoder's norm

    @property
    def competes(self) -> bool:
        """Whether a feature's activity depends on the other features."""
        return self.name == "topk"

    def part(self, indices: Tensor) -> Activation:
        """The activation of these features alone; they must not compete."""
        if self.threshold is None:
            return self
        return replace(self, threshold=self.threshold[indices])

    def __call__(self, before: Tensor, decoder: Decoder) -> Tensor:
        """Set what isn't active of (..., d_sae) to zero; what is active stays as it is."""
        judged = before
        if self.times_decoder_norm and decoder.norms is not None:
            judged = before * decoder.norms
        if self.competes:
            largest, indices = judged.topk(min(self.top_k, judged.shape[-1]))
            active = torch.zeros_like(judged, dtype=torch.bool).scatter_(-1, indices, largest > 0)
        elif self.threshold is not None:
            active = judged > self.threshold
        else:
            active = judged > 0
        return before * active


@dataclass(frozen=True)
class Transcoder:
    """What replaces an MLP: `h = x W_E + b_E`, gated by a sigmoid where there is a GLU."""

    W_E: Tensor  # (d_sae, d_model): a row is what a feature reads
    b_E: Tensor  # (d_sae,)
    b_D: Tensor  # (d_model,), zeros where the module has none
    decoder: Decoder
    activation: Activation
    W_E_glu: Tensor | None = None  # (d_sae, d_model)
    b_E_glu: Tensor | None = None  # (d_sae,)

    @property
    def reads(self) -> Tensor:
        """What features read, without a gate: (d_sae, d_model)."""
        return self.W_E

    @property
    def gate_reads(self) -> Tensor | None:
        """What the gate of each feature reads: (d_sae, d_model)."""
        return self.W_E_glu

    def part(self, indices: Tensor) -> Transcoder:
        """The transcoder with these features alone; they must not compete."""
        gate, gate_bias = self.W_E_glu, self.b_E_glu
        return replace(
            self,
            W_E=self.W_E[indices],
            b_E=self.b_E[indices],
            decoder=self.decoder.part(indices),
            activation=self.activation.part(indices),
            W_E_glu=None if gate is None else gate[indices],
            b_E_glu=None if gate_bias is None else gate_bias[indices],
        )

    def encode(self, x: Tensor) -> Tensor:
        """Activations (..., d_sae) float32 of inputs (..., d_model) float32."""
        before, gate = self.before_gate(x)
        return self.activation(before if gate is None else before * gate, self.decoder)

    def before_gate(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`x W_E + b_E` and the sigmoid that it is multiplied by, each (..., d_sae) float32."""
        before = _read(x, self.W_E.T) + self.b_E
        if self.W_E_glu is None or self.b_E_glu is None:
            return before, None
        return before, torch.sigmoid(_read(x, self.W_E_glu.T) + self.b_E_glu)


@dataclass(frozen=True)
class Rotary:
    """The rotary tables of a Lorsa's queries and keys."""

    cos: Tensor  # (n_ctx, rotary_dim)
    sin: Tensor  # (n_ctx, rotary_dim)
    adjacent_pairs: bool  # pairs are neighbours, not a dimension of each half

    def forward(self, vectors: Tensor, positions: Tensor | slice) -> Tensor:
        """Rotate (..., n, d_qk) at `positions` (n,); dimensions behind the tables' stay."""
        return self._turn(vectors, positions, 1.0)

    def backward(self, vectors: Tensor, positions: Tensor | slice) -> Tensor:
        """The transpose of `forward`."""
        return self._turn(vectors, positions, -1.0)

    def _turn(self, vectors: Tensor, positions: Tensor | slice, sign: float) -> Tensor:
        cos, sin = self.cos[positions].float(), self.sin[positions].float()
        turned, rest = vectors.split([cos.shape[-1], vectors.shape[-1] - cos.shape[-1]], -1)
        if sign > 0:
            result = turned * cos + self._quarter(turned) * sin
        else:  # The two dimensions of a pair may have tables that are rounded apart.
            result = turned * cos - self._quarter(turned * sin)
        return torch.cat([result, rest], -1)

    def _quarter(self, x: Tensor) -> Tensor:
        """Turn each pair by a quarter: (a, b) to (-b, a)."""
        if self.adjacent_pairs:
            return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)


@dataclass(frozen=True)
class Attention:
    """A Lorsa's attention on one prompt, in float32: what is held still of it."""

    q: Tensor  # (n_qk, n_pos, d_qk) as they are multiplied
    k: Tensor
    q_scale: Tensor | None  # (n_qk, n_pos, 1) of their norms
    k_scale: Tensor | None
    pattern: Tensor  # (n_qk, n_pos, n_pos): to, from
    key_positions: Tensor  # (n_qk, n_pos) int64: where each head attends most


@dataclass(frozen=True)
class Lorsa:
    """What replaces an attention: d_sae heads of rank one, of which several share a pattern."""

    W_Q: Tensor  # (n_qk, d_model, d_qk)
    W_K: Tensor  # (n_qk, d_model, d_qk)
    b_Q: Tensor  # (n_qk, d_qk)
    b_K: Tensor  # (n_qk, d_qk)
    W_V: Tensor  # (d_sae, d_model): a row is what a feature reads
    b_V: Tensor  # (d_sae,)
    b_D: Tensor  # (d_model,), zeros where the module has none
    decoder: Decoder
    activation: Activation
    attn_scale: float  # scores are divided by it
    q_gain: Tensor | None = None  # (n_qk, d_qk) of the norm of queries, None: no norm
    k_gain: Tensor | None = None
    eps: float = 1e-6  # of that norm
    rotary: Rotary | None = None
    n_ctx: int | None = None  # most tokens that it takes

    @property
    def reads(self) -> Tensor:
        """What features read at the positions attended to: (d_sae, d_model)."""
        return self.W_V

    @property
    def gate_reads(self) -> Tensor | None:
        return None

    @property
    def n_grouped(self) -> int:
        """How many features share a pattern: those of head g are from g times it."""
        return len(self.W_V) // len(self.W_Q)

    def attend(self, x: Tensor) -> Attention:
        """The attention on inputs (n_pos, d_model) float32."""
        everywhere = slice(0, len(x))
        q, q_scale = self._projected(x, everywhere, self.W_Q, self.b_Q, self.q_gain)
        k, k_scale = self.keys(x, everywhere)
        scores = q @ k.transpose(1, 2) / self.attn_scale
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        return Attention(q, k, q_scale, k_scale, scores.softmax(-1), scores.argmax(-1))

    def encode(self, x: Tensor, attention: Attention) -> Tensor:
        """Activations (n_pos, d_sae) float32 of inputs (n_pos, d_model) float32."""
        return self.activations(attention.pattern, self.values(x))

    # Below, inputs may have rows in front: each is a text of its own.

    def keys(self, x: Tensor, positions: slice) -> tuple[Tensor, Tensor | None]:
        """Keys (n_qk, n, d_qk) float32 of inputs (n, d_model), and the scale of their norm."""
        return self._projected(x, positions, self.W_K, self.b_K, self.k_gain)

    def values(self, x: Tensor, features: slice | Tensor = slice(None)) -> Tensor:
        """What features read of inputs (n, d_model) float32: (n, n_features)."""
        return _read(x, self.W_V[features].T) + self.b_V[features]

    def pattern(self, x: Tensor, positions: Tensor, keys: Tensor) -> Tensor:
        """The pattern (n_qk, n, n_keys) from inputs (n, d_model) at `positions` to all keys."""
        q, _ = self._projected(x, positions, self.W_Q, self.b_Q, self.q_gain)
        scores = q @ keys.transpose(-1, -2) / self.attn_scale
        later = torch.arange(keys.shape[-2], device=x.device) > positions[:, None]
        return scores.masked_fill(later, -torch.inf).softmax(-1)

    def activations(self, pattern: Tensor, values: Tensor) -> Tensor:
        """Activations (n, d_sae) of patterns (n_qk, n, n_keys) and values (n_keys, d_sae)."""
        by_head = values.unflatten(-1, (len(self.W_Q), -1)).transpose(-3, -2)
        before = (pattern @ by_head).transpose(-3, -2).flatten(-2)
        return self.activation(before, self.decoder)

    def _projected(
        self,
        x: Tensor,
        positions: slice | Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries or keys (n_qk, n_pos, d_qk) float32, and the scale of their norm."""
        flat = _read(x, weight.transpose(0, 1).flatten(1))
        vectors = flat.unflatten(-1, (len(weight), -1)).transpose(-3, -2) + bias[:, None]
        scale = None
        if gain is not None:
            scale = (vectors.square().mean(-1, keepdim=True) + self.eps).sqrt()
            vectors = vectors / scale * gain[:, None]
        if self.rotary is not None:
            vectors = self.rotary.forward(vectors, positions)
        return vectors, scale


@dataclass(frozen=True)
class CompleteModel:
    """A language model and the modules that replace all its sublayers."""

    language_model: Any  # TransformerLens's HookedTransformer
    lorsas: Sequence[Lorsa]  # by layer
    transcoders: Sequence[Transcoder]  # by layer

    @property
    def cfg(self) -> Any:
        """The language model's configuration."""
        return self.language_model.cfg

    @property
    def n_ctx(self) -> int:
        """Most tokens that the language model and all Lorsas take."""
        return min([self.cfg.n_ctx, *(lorsa.n_ctx for lorsa in self.lorsas if lorsa.n_ctx)])

    @property
    def tokenizer(self) -> Any:
        return self.language_model.tokenizer

    def module(self, sublayer: int) -> Transcoder | Lorsa:
        """The module of sublayer `2 l`, layer l's attention, or `2 l + 1`, its MLP."""
        layer, is_mlp = divmod(sublayer, 2)
        return self.transcoders[layer] if is_mlp else self.lorsas[layer]

    def n_features(self, sublayer: int) -> int:
        """How many features a sublayer has."""
        return len(self.module(sublayer).reads)
