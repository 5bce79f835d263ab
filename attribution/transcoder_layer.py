"""One layer of a set of transcoders, of either of circuit-tracer's kinds, in memory or on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear, relu


class TranscoderLayer:
    """A layer's biases, `b_enc` (d_transcoder,) and `b_dec` (d_model,), its rows and encoder.

    Encoding rounds where circuit-tracer rounds: a bit decides whether a feature at its threshold is
    active, and graphs and steers have to agree.
    """

    def __init__(self, transcoders: Any, layer: int) -> None:
        self.layer, self._transcoders = layer, transcoders
        self._is_cross_layer = isinstance(transcoders, CrossLayerTranscoder)
        self._owner = transcoders if self._is_cross_layer else transcoders[layer]
        self.lazy_encoder: bool = self._owner.lazy_encoder  # read from a file when it is needed
        self.b_enc: Tensor = self._own("b_enc")
        self.b_dec: Tensor = self._own("b_dec")

    @property
    def skip(self) -> Tensor | None:
        """The skip connection (d_model written, d_model read), or None where there is none."""
        if not self._transcoders.skip_connection:
            return None
        weight: Tensor = self._own("W_skip")
        return weight.T if self._is_cross_layer else weight

    def decoders(self, indices: Tensor) -> Tensor:
        """A copy of what these features write, (n_layers_written, n_indices, d_model)."""
        rows = self.rows("W_dec", indices)
        return rows.transpose(0, 1) if rows.ndim == 3 else rows[None]

    def rows(self, name: Literal["W_enc", "W_dec"], indices: Tensor | None = None) -> Tensor:
        """A weight's rows of these features, all for None. From a file no other rows are read."""
        owner = self._owner
        if not (self.lazy_encoder if name == "W_enc" else owner.lazy_decoder):
            weight: Tensor = self._own(name)
            return weight if indices is None else weight[indices]
        if self._is_cross_layer:
            key = f"{name}_{self.layer}"
            path = Path(owner.clt_path) / f"{key}.safetensors"
        else:
            key, path = name, Path(owner.transcoder_path)
        with safe_open(path, framework="pt", device=str(owner.device)) as file:
            if indices is None:
                return file.get_tensor(key).to(owner.dtype)
            distinct, which = indices.unique(return_inverse=True)
            return file.get_slice(key)[distinct.cpu()].to(owner.dtype)[which]

    def encode(self, inputs: Tensor, W_enc: Tensor) -> Tensor:
        """The activations (n, d_transcoder) on feature inputs (n, d_model).

        Args:
            W_enc: all rows, which the caller reads from a file once.
        """
        before = self._before_activation(inputs, W_enc, self.b_enc)
        activations: Tensor = self._transcoders.apply_activation_function(self.layer, before)
        return activations

    def encoder(self, indices: Tensor) -> Callable[[Tensor], Tensor]:
        """The map from inputs (n, d_model) to these features' activations (n, n_indices)."""
        activation = self._owner.activation_function
        if isinstance(activation, JumpReLU):
            threshold = activation.threshold
            threshold = threshold[self.layer, 0] if self._is_cross_layer else threshold
            activate = _jump_relu(threshold.expand_as(self.b_enc)[indices])
        elif activation is relu or isinstance(activation, nn.ReLU):
            activate = relu
        else:
            # Under TopK features compete, and under other functions they may: all are computed.
            W_enc = self.rows("W_enc")
            return lambda x: self.encode(x, W_enc)[:, indices]
        rows, b_enc = self.rows("W_enc", indices), self.b_enc[indices]
        return lambda x: activate(self._before_activation(x, rows, b_enc))

    def _before_activation(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        x = x.to(W_enc.dtype)  # behind a norm it is float32, whatever the model's dtype
        return linear(x, W_enc) + b_enc if self._is_cross_layer else linear(x, W_enc, b_enc)

    def _own(self, name: str) -> Any:
        """This layer's part of a weight; a cross-layer transcoder's weights have all layers."""
        weight = getattr(self._owner, name)
        return weight[self.layer] if self._is_cross_layer else weight


def _jump_relu(threshold: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * (x > threshold)
