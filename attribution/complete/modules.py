"""The modules of a complete replacement model: transcoders and Lorsas, and what each computes.

Shapes: d_model of the residual stream, d_sae features of a module, n_qk heads of a Lorsa with d_qk
dimensions each. Both kinds read the normalised residual stream before the norm's gain, and write
what is added to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

ActivationName = Literal["relu", "topk", "jumprelu"]


@dataclass(frozen=True)
class Decoder:
    """The decoder vectors of a module's features, in memory or left on the disk."""

    # Feature indices (n,) on any device -> vectors (n, d_model) on the module's device.
    rows: Callable[[Tensor], Tensor]
    norms: Tensor | None  # (d_sae,) float32, where the activation needs them


@dataclass(frozen=True)
class Activation:
    """How pre-activations become activations: which features of a position are active."""

    name: ActivationName
    top_k: int = 0  # of topk
    threshold: Tensor | None = None  # (d_sae,), of jumprelu: exp of what the file has
    times_decoder_norm: bool = False  # judged after a multiplication by the decoder's norm


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


@dataclass(frozen=True)
class Rotary:
    """The rotary tables of a Lorsa's queries and keys."""

    cos: Tensor  # (n_ctx, rotary_dim)
    sin: Tensor  # (n_ctx, rotary_dim)
    adjacent_pairs: bool  # pairs are neighbours, not a dimension of each half


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
    def tokenizer(self) -> Any:
        return self.language_model.tokenizer
