"""A per-layer set of circuit-tracer's as the transcoders of a complete model, for the demo."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.complete.modules import Activation, Transcoder
from loading import WeightsError
from loading.complete_modules import Placement, StoredDecoder, eager_decoder
from loading.inspection import Contents
from loading.layers import Layer
from loading.transcoder_folder import CONFIG

# Where such a set reads, and whether that is behind the gain of the norm before the MLP. A complete
# model's transcoders read before it.
_BEHIND_GAIN = {"mlp.hook_in": True, "ln2.hook_normalized": False}
_OUTPUTS = ("mlp.hook_out", "hook_mlp_out")


def check_convertible(contents: Contents) -> None:
    """Raise WeightsError where a set isn't the same function in the form of a complete one."""
    config, file = contents.files.config, contents.files.folder / CONFIG
    served = {
        "model_kind": (config.kind, ("transcoder_set",)),
        "feature_input_hook": (config.feature_input_hook, tuple(_BEHIND_GAIN)),
        "feature_output_hook": (config.feature_output_hook, _OUTPUTS),
        "activation": (contents.activation, ("relu", "jump_relu")),
    }
    for key, (value, values) in served.items():
        if value not in values:
            raise WeightsError(
                f"{file}: {key} {value!r} is not served beside Lorsas; one of "
                f"{', '.join(values)} is"
            )
    if contents.skip:
        raise WeightsError(f"{contents.files.folder}: skip connections are not served with Lorsas")


def convert_transcoder(
    layer: Layer, contents: Contents, gain: Tensor, placement: Placement
) -> Transcoder:
    """A transcoder that gives the same activations from what is before the norm's gain.

    Args:
        gain: of the norm, (d_model,).

    Raises:
        WeightsError: a file is damaged.
    """

    def read(name: str, dtype: torch.dtype = placement.dtype) -> Tensor:
        return layer.read(name, device=str(placement.device), dtype=dtype)

    W_E = read("W_enc", torch.float32)
    if _BEHIND_GAIN[contents.files.config.feature_input_hook]:
        W_E = W_E * gain.float()
    if placement.lazy_decoder and layer.layout.can_be_lazy:
        stored = layer.stored["W_dec"]
        decoder = StoredDecoder(stored.path, stored.name, placement).decoder(with_norms=False)
    else:
        decoder = eager_decoder(read("W_dec"), with_norms=False)
    b_E = read("b_enc")
    activation = Activation("relu")
    if contents.activation == "jump_relu":
        threshold = read("threshold", torch.float32)
        activation = Activation("jumprelu", threshold=threshold.expand(len(b_E)).contiguous())
    return Transcoder(
        W_E=W_E.to(placement.dtype).contiguous(),
        b_E=b_E,
        b_D=read("b_dec"),
        decoder=decoder,
        activation=activation,
    )
