"""Tiny random models under the official names of real ones, as Hugging Face's cache holds them.

The configuration class, the tokenizer's kind and chat template, and the files' layout are the real
family's; only the sizes are small. Another family is another row of FAMILIES.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from safetensors.torch import save
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from tests import tiny_tokenizers
from tests.model_cache import files_of, write_repository
from tests.test_hooked_config import LINEAR_ROPE, gemma3_with_vision

N_LAYERS, D_MODEL, N_FEATURES = 3, 32, 64

Repositories = dict[str, dict[str, bytes]]
Tensors = dict[str, torch.Tensor]

_SHAPE: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """A model, its transcoders, and how both are laid out on the hub."""

    model: str
    transcoder_set: str
    config: Callable[[int], PretrainedConfig]  # of the vocabulary's size
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    transcoders: Callable[[str], Repositories]  # of the set's name


def config_yaml(kind: str, read: str, write: str, listed: tuple[str, ...] = ()) -> bytes:
    lines = [
        f"model_kind: {kind}",
        f"feature_input_hook: {read}",
        f"feature_output_hook: {write}",
    ]
    if listed:
        lines += ["transcoders:", *(f"  - {address!r}" for address in listed)]
    return "\n".join(lines).encode()


def random_transcoder(layer: int, *, skip: bool = False, jump: bool = False) -> Any:
    activation = JumpReLU(torch.zeros(N_FEATURES), 0.1) if jump else torch.nn.functional.relu
    transcoder = SingleLayerTranscoder(
        D_MODEL, N_FEATURES, activation, layer, skip_connection=skip, dtype=torch.float32
    )
    return _randomised(transcoder)


def random_cross_layer_transcoder(*, jump: bool = True, skip: bool = False) -> CrossLayerTranscoder:
    transcoder = CrossLayerTranscoder(
        N_LAYERS,
        N_FEATURES,
        D_MODEL,
        "jump_relu" if jump else "relu",
        skip_connection=skip,
        lazy_decoder=False,
        dtype=torch.float32,
    )
    return _randomised(transcoder)


def _randomised(transcoder: Any) -> Any:
    with torch.no_grad():
        for name, parameter in transcoder.named_parameters():
            if "threshold" in name:
                parameter.fill_(0.3)
            else:
                parameter.normal_(std=0.17 if parameter.ndim > 1 else 0.3)
    return transcoder


def npz_layer(transcoder: Any) -> bytes:
    """A layer as GemmaScope's own files hold it, the encoder (d_model, n_features)."""
    arrays = {
        "W_enc": transcoder.W_enc.detach().T.numpy(),
        "W_dec": transcoder.W_dec.detach().numpy(),
        "b_enc": transcoder.b_enc.detach().numpy(),
        "b_dec": transcoder.b_dec.detach().numpy(),
        "threshold": transcoder.activation_function.threshold.detach().numpy(),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def gemma_scope_2_layer(transcoder: Any, layer: int | None = None) -> Tensors:
    """A layer as Gemma Scope 2's own files hold it: names in small letters, encoder transposed.

    Args:
        layer: of a cross-layer transcoder, whose decoders are there for all layers.
    """
    threshold = transcoder.activation_function.threshold
    if layer is None:
        tensors = {
            "w_enc": transcoder.W_enc.T,
            "w_dec": transcoder.W_dec,
            "b_enc": transcoder.b_enc,
            "b_dec": transcoder.b_dec,
            "threshold": threshold,
        }
        if transcoder.W_skip is not None:
            tensors["affine_skip_connection"] = transcoder.W_skip.T
    else:
        w_dec = torch.zeros(N_FEATURES, N_LAYERS, D_MODEL)
        w_dec[:, layer:] = transcoder.W_dec[layer].detach()
        tensors = {
            "w_enc": transcoder.W_enc[layer].T,
            "w_dec": w_dec,
            "b_enc": transcoder.b_enc[layer],
            "b_dec": transcoder.b_dec[layer],
            "threshold": threshold[layer, 0],
        }
        if transcoder.W_skip is not None:
            tensors["affine_skip_connection"] = transcoder.W_skip[layer]
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def gemma_scope(name: str) -> Repositories:
    """One `.npz` a layer in Google's repository, listed by the set's configuration."""
    weights = "google/gemma-scope-2b-pt-transcoders"
    files = {
        f"layer_{layer}/width_16k/average_l0_{70 + layer}/params.npz": npz_layer(
            random_transcoder(layer, jump=True)
        )
        for layer in range(N_LAYERS)
    }
    listed = tuple(f"hf://{weights}/{file}" for file in files)
    config = config_yaml("transcoder_set", "ln2.hook_normalized", "hook_mlp_out", listed)
    return {name: {"config.yaml": config}, weights: files}


def per_layer(
    read: str, write: str, *, skip: bool = False, jump: bool = False
) -> Callable[[str], Repositories]:
    """One safetensors file a layer beside the configuration, at the top or in a folder."""

    def repositories(name: str) -> Repositories:
        owner, repository, *folder = name.split("/")
        files = {"config.yaml": config_yaml("transcoder_set", read, write)}
        for layer in range(N_LAYERS):
            transcoder = random_transcoder(layer, skip=skip, jump=jump)
            state = {key: value.detach() for key, value in transcoder.state_dict().items()}
            files[f"layer_{layer}.safetensors"] = save(state)
        inside = {"/".join([*folder, file]): content for file, content in files.items()}
        return {f"{owner}/{repository}": inside}

    return repositories


def cross_layer(name: str) -> Repositories:
    """An encoder and a decoder file a layer."""
    with tempfile.TemporaryDirectory() as directory:
        random_cross_layer_transcoder().to_safetensors(directory)
        files = files_of(Path(directory))
    files["config.yaml"] = config_yaml("cross_layer_transcoder", "hook_resid_mid", "hook_mlp_out")
    return {name: files}


def _gemma2(d_vocab: int) -> Gemma2Config:
    return Gemma2Config(**_SHAPE, vocab_size=d_vocab, query_pre_attn_scalar=24, sliding_window=8)


def _gemma3(d_vocab: int) -> PretrainedConfig:
    return gemma3_with_vision(
        **_SHAPE, vocab_size=d_vocab, sliding_window=8, rope_scaling=LINEAR_ROPE
    )


def _qwen3(d_vocab: int) -> Qwen3Config:
    shape = {**_SHAPE, "tie_word_embeddings": True, "rope_theta": 1_000_000.0}
    return Qwen3Config(**shape, vocab_size=d_vocab)


def _llama(d_vocab: int) -> LlamaConfig:
    shape = {**_SHAPE, "tie_word_embeddings": True, "rope_theta": 500_000.0}
    return LlamaConfig(**shape, vocab_size=d_vocab, rope_scaling=_LLAMA3_ROPE)


def _gpt2(d_vocab: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=d_vocab,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=d_vocab - 1,
        eos_token_id=d_vocab - 1,
    )


FAMILIES = {
    "Gemma 2, per layer": Family(
        "google/gemma-2-2b",
        "mwhanna/gemma-scope-transcoders",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        gemma_scope,
    ),
    "Gemma 2, cross-layer": Family(
        "google/gemma-2-2b",
        "mntss/clt-gemma-2-2b-2.5M",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        cross_layer,
    ),
    "Gemma 3 chat, affine in a folder": Family(
        "google/gemma-3-4b-it",
        "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k_l0_small_affine",
        _gemma3,
        tiny_tokenizers.gemma3,
        per_layer("mlp.hook_in", "hook_mlp_out", skip=True, jump=True),
    ),
    "Qwen 3": Family(
        "Qwen/Qwen3-4B",
        "mwhanna/qwen3-4b-transcoders",
        _qwen3,
        tiny_tokenizers.qwen3,
        per_layer("mlp.hook_in", "mlp.hook_out"),
    ),
    "Llama 3, skip": Family(
        "meta-llama/Llama-3.2-1B",
        "mntss/transcoder-Llama-3.2-1B",
        _llama,
        tiny_tokenizers.llama3,
        per_layer("hook_resid_mid", "hook_mlp_out", skip=True),
    ),
    "GPT-2": Family(
        "openai-community/gpt2",
        "someone/gpt2-transcoders",
        _gpt2,
        tiny_tokenizers.gpt2,
        per_layer("ln2.hook_normalized", "hook_mlp_out", jump=True),
    ),
}


def write_family(cache: Path, family: Family) -> Path:
    """Write a family's repositories into a cache; returns the model's snapshot."""
    torch.manual_seed(0)
    tokenizer = family.tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        model = AutoModelForCausalLM.from_config(family.config(len(tokenizer)))
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        model.save_pretrained(directory, max_shard_size="60KB")
        tokenizer.save_pretrained(directory)
        snapshot = write_repository(cache, family.model, files_of(Path(directory)))
    for name, files in family.transcoders(family.transcoder_set).items():
        write_repository(cache, name, files)
    return snapshot
