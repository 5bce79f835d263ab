"""Tiny random replacement models, one for each architecture and kind of transcoder.

Every parameter is random, norm weights and biases too, so that a formula that drops one of them
gives other numbers. They build in milliseconds and need no file but where decoders are lazy.
"""

from pathlib import Path
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import TranscoderSet, single_layer_transcoder
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from loading.transcoders import cast_skip_inputs

# PyPI's name, and upstream's.
load_transcoder = getattr(single_layer_transcoder, "load_relu_transcoder", None) or (
    single_layer_transcoder.load_transcoder
)

N_LAYERS, D_MODEL, D_TRANSCODER, D_VOCAB = 3, 32, 64, 50

_ROTARY: dict[str, Any] = {
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "final_rms": True,
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "n_key_value_heads": 2,
}
_GEMMA: dict[str, Any] = {
    **_ROTARY,
    "act_fn": "gelu_pytorch_tanh",
    "use_normalization_before_and_after": True,
    "use_local_attn": True,
    "window_size": 4,
    "attn_types": ["local", "global", "local"],
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma2": {**_GEMMA, "attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 3.0},
    "gemma3": {**_GEMMA, "use_qk_norm": True, "rotary_base_local": 1000.0},
    "llama": _ROTARY,
    "qwen3": {**_ROTARY, "use_qk_norm": True},
    "gpt2": {"act_fn": "gelu_new", "normalization_type": "LN"},
    "folded layer norm": {"act_fn": "gelu_new", "normalization_type": "LNPre"},
    "folded rms norm": {**_ROTARY, "normalization_type": "RMSPre"},
    "parallel": {"act_fn": "gelu_new", "normalization_type": "LN", "parallel_attn_mlp": True},
}
# Where transcoders read and write, as circuit-tracer names it.
HOOKS = {
    "gemma scope": ("ln2.hook_normalized", "hook_mlp_out"),
    "residual": ("hook_resid_mid", "hook_mlp_out"),
    "mlp": ("mlp.hook_in", "mlp.hook_out"),
}
PER_LAYER = ("relu", "jump_relu", "top_k")
CROSS_LAYER = ("cross_layer_relu", "cross_layer_jump_relu")


def tiny_model(
    architecture: str = "llama",
    dictionary: str = "jump_relu",
    hooks: str = "residual",
    *,
    skip: bool = False,
    lazy_in: Path | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> TransformerLensReplacementModel:
    """A replacement model on the CPU.

    Args:
        architecture: a key of ARCHITECTURES.
        dictionary: one of PER_LAYER or CROSS_LAYER.
        hooks: a key of HOOKS.
        skip: whether the transcoders have a skip connection.
        lazy_in: a directory to save ReLU transcoders in and read their encoders and decoders from.
    """
    torch.manual_seed(seed)
    cfg = HookedTransformerConfig(
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_ctx=64,
        d_head=8,
        n_heads=4,
        d_mlp=48,
        d_vocab=D_VOCAB,
        model_name=f"tiny-{architecture}",
        device="cpu",
        dtype=dtype,
        init_weights=True,
        **ARCHITECTURES[architecture],
    )
    transcoders = tiny_transcoders(dictionary, hooks, skip=skip, lazy_in=lazy_in)
    model = TransformerLensReplacementModel.from_config(cfg, transcoders)
    cast_skip_inputs(transcoders)
    for name, parameter in model.named_parameters():
        if "transcoders" not in name:
            _randomise_weight(name, parameter)
    model.tokenizer = word_tokenizer()
    return model


def tiny_transcoders(
    dictionary: str, hooks: str, *, skip: bool = False, lazy_in: Path | None = None
) -> TranscoderSet | CrossLayerTranscoder:
    input_hook, output_hook = HOOKS[hooks]
    if dictionary in CROSS_LAYER:
        clt = CrossLayerTranscoder(
            N_LAYERS,
            D_TRANSCODER,
            D_MODEL,
            activation_function=dictionary.removeprefix("cross_layer_"),
            skip_connection=skip,
            lazy_decoder=False,
            feature_input_hook=input_hook,
            feature_output_hook=output_hook,
            scan="tiny",
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        _randomise(clt)
        if lazy_in is None:
            return clt
        clt.to_safetensors(str(lazy_in))
        return load_clt(
            str(lazy_in),
            input_hook,
            output_hook,
            scan="tiny",
            device=torch.device("cpu"),
            dtype=torch.float32,
            lazy_encoder=True,
            lazy_decoder=True,
        )
    if dictionary == "top_k" and lazy_in is not None:
        # Upstream writes a `k` into the file, which it can't read again.
        dictionary = "relu"
    layers = {}
    for layer in range(N_LAYERS):
        transcoder = SingleLayerTranscoder(
            D_MODEL,
            D_TRANSCODER,
            _activation_function(dictionary),
            layer,
            skip_connection=skip,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        _randomise(transcoder)
        if lazy_in is not None:
            path = str(lazy_in / f"layer_{layer}.safetensors")
            transcoder.to_safetensors(path)
            transcoder = load_transcoder(
                path,
                layer,
                device=torch.device("cpu"),
                dtype=torch.float32,
                lazy_encoder=True,
                lazy_decoder=True,
            )
        layers[layer] = transcoder
    return TranscoderSet(layers, input_hook, output_hook, scan="tiny")


def _activation_function(dictionary: str) -> Any:
    if dictionary == "top_k":
        return TopK(10)
    return (
        JumpReLU(torch.full((D_TRANSCODER,), 0.6), 0.1)
        if dictionary == "jump_relu"
        else (torch.nn.functional.relu)
    )


def _randomise_weight(name: str, parameter: torch.nn.Parameter) -> None:
    noise = torch.randn_like(parameter)
    if parameter.ndim > 1:
        parameter.data = noise * (1.0 if "embed" in name else parameter.shape[-2] ** -0.5)
    else:
        parameter.data = 0.3 * noise + (1.0 if name.endswith(".w") else 0.0)


def _randomise(transcoders: torch.nn.Module) -> None:
    for name, parameter in transcoders.named_parameters():
        if "threshold" in name:
            parameter.data = torch.full_like(parameter, 0.6)
        else:
            parameter.data = torch.randn_like(parameter) * (0.17 if parameter.ndim > 1 else 0.3)


def word_tokenizer(d_vocab: int = D_VOCAB) -> PreTrainedTokenizerFast:
    """A tokenizer of the words "w3", "w4", …, with the ids in their names."""
    vocabulary = {"<eos>": 0, "<bos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, d_vocab)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def prompt_tokens(n_tokens: int = 8, seed: int = 1) -> torch.Tensor:
    """Token ids (n_tokens,) that start with BOS."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, D_VOCAB, (n_tokens - 1,), generator=generator)
    return torch.cat([torch.ones(1, dtype=torch.long), words])
