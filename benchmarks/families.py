"""The kinds of model and transcoders that a graph launches different kernels for."""

from typing import Any, Literal, NamedTuple

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

from loading.transcoders import cast_skip_inputs

Dictionary = Literal["jump relu", "relu", "top k", "cross-layer relu", "cross-layer jump relu"]

_RMS: dict[str, Any] = {
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "final_rms": True,
    "positional_embedding_type": "rotary",
}
_NORMS_AFTER = {**_RMS, "act_fn": "gelu", "use_normalization_before_and_after": True}
_LOCAL = {"use_local_attn": True, "window_size": 32}
_GEMMA_2 = {
    **_NORMS_AFTER,
    **_LOCAL,
    "attn_scores_soft_cap": 50.0,
    "output_logits_soft_cap": 30.0,
}
_GEMMA_3 = {**_NORMS_AFTER, **_LOCAL, "use_qk_norm": True, "rotary_base_local": 10_000.0}


class Family(NamedTuple):
    """A kind of model and its transcoders: the configuration, and where features read and write."""

    config: dict[str, Any]
    dictionary: Dictionary
    reads: str
    writes: str
    skip: bool = False
    grouped_heads: bool = True  # a value for two heads


_AT_NORM = ("ln2.hook_normalized", "hook_mlp_out")
_AT_MLP = ("mlp.hook_in", "mlp.hook_out")

FAMILIES = {
    # What R0 to G512 are: Gemma 2 without its soft caps and local windows.
    "reference": Family(_NORMS_AFTER, "jump relu", *_AT_NORM),
    "Gemma 2": Family(_GEMMA_2, "jump relu", *_AT_NORM),
    "Gemma 3": Family(_GEMMA_3, "jump relu", *_AT_NORM),
    "Qwen 3": Family({**_RMS, "use_qk_norm": True}, "relu", *_AT_MLP),
    "Llama, skip connections": Family(_RMS, "relu", *_AT_MLP, skip=True),
    "Llama, TopK": Family(_RMS, "top k", *_AT_MLP),
    "GPT-2": Family(
        {"act_fn": "gelu_new", "normalization_type": "LN"}, "relu", *_AT_MLP, grouped_heads=False
    ),
    "Gemma 2, cross-layer": Family(_GEMMA_2, "cross-layer relu", "hook_resid_mid", "hook_mlp_out"),
    "Gemma 3, cross-layer": Family(_GEMMA_3, "cross-layer jump relu", *_AT_NORM, skip=True),
}


def transcoders(
    family: Family,
    n_layers: int,
    d_model: int,
    d_transcoder: int,
    threshold: float,
    device: str,
    dtype: torch.dtype,
) -> TranscoderSet | CrossLayerTranscoder:
    """Random ones, of which those features are active that are above `threshold`.

    What features read has entries of about one, so that theirs are spread like a normal
    distribution. Of a TopK as many are active at every token as of a JumpReLU on average.
    """
    where = {"device": torch.device(device), "dtype": dtype}
    if family.dictionary.startswith("cross-layer"):
        clt = CrossLayerTranscoder(
            n_layers,
            d_transcoder,
            d_model,
            family.dictionary.removeprefix("cross-layer ").replace(" ", "_"),
            family.skip,
            lazy_decoder=False,
            feature_input_hook=family.reads,
            feature_output_hook=family.writes,
            scan="synthetic",
            **where,
        )
        _randomise(clt, d_model, threshold)
        cast_skip_inputs(clt)
        return clt
    layers = {}
    for layer in range(n_layers):
        layers[layer] = SingleLayerTranscoder(
            d_model,
            d_transcoder,
            _activation_function(family.dictionary, d_transcoder, threshold),
            layer,
            family.skip,
            **where,
        )
        _randomise(layers[layer], d_model, threshold)
    found = TranscoderSet(layers, family.reads, family.writes, scan="synthetic")
    cast_skip_inputs(found)
    return found


def _activation_function(dictionary: Dictionary, d_transcoder: int, threshold: float) -> Any:
    if dictionary == "jump relu":
        return JumpReLU(torch.full((d_transcoder,), threshold), 0.1)
    if dictionary == "top k":
        return TopK(max(1, round(d_transcoder * share_above(threshold))))
    return torch.nn.functional.relu


def share_above(threshold: float) -> float:
    """The share of standard normal numbers that are above a threshold."""
    return float(torch.special.erfc(torch.tensor(threshold / 2**0.5, dtype=torch.float64)) / 2)


def _randomise(transcoder: torch.nn.Module, d_model: int, threshold: float) -> None:
    for name, parameter in transcoder.named_parameters():
        if "threshold" in name:
            parameter.data.fill_(threshold)
        elif "b_" in name:
            if name == "b_enc" and not _has_threshold(transcoder):
                parameter.data.fill_(-threshold)
        else:
            torch.nn.init.normal_(parameter, std=d_model**-0.5)


def _has_threshold(transcoder: torch.nn.Module) -> bool:
    return isinstance(transcoder.activation_function, JumpReLU | TopK)
