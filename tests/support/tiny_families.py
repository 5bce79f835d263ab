"""Tiny random models under the official names of real ones, as Hugging Face's cache holds them.

The configuration class, the tokenizer's kind and chat template, and the files' layout are the real
family's; only the sizes are small. Another family is another row of FAMILIES.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from tests.support import tiny_tokenizers
from tests.support.complete_sets import complete
from tests.support.model_cache import files_of, write_repositories, write_repository
from tests.support.model_configs import LINEAR_ROPE, gemma3_with_vision
from tests.support.tiny_sets import (
    D_MODEL,
    N_LAYERS,
    Repositories,
    cross_layer,
    gemma_scope,
    gemma_scope_2,
    per_layer,
)

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


def _gemma2(d_vocab: int) -> Gemma2Config:
    return Gemma2Config(**_SHAPE, vocab_size=d_vocab, query_pre_attn_scalar=24, sliding_window=8)


def _gemma3(d_vocab: int) -> PretrainedConfig:
    return gemma3_with_vision(
        **_SHAPE, vocab_size=d_vocab, sliding_window=8, rope_scaling=LINEAR_ROPE
    )


def _gemma3_text(d_vocab: int) -> Gemma3TextConfig:
    """The two smallest have no vision tower."""
    return Gemma3TextConfig(
        **_SHAPE,
        vocab_size=d_vocab,
        sliding_window=8,
        query_pre_attn_scalar=24,
        rope_local_base_freq=100.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def _gpt_oss(d_vocab: int) -> GptOssConfig:
    return GptOssConfig(
        **_SHAPE,
        vocab_size=d_vocab,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_scaling=None,
        tie_word_embeddings=False,
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


_16_BIT = torch.bfloat16
_GEMMA_SCOPE_2 = ("mlp.hook_in", "hook_mlp_out")


def _qwen3_family(size: str, transcoder_set: str) -> Family:
    return Family(
        f"Qwen/Qwen3-{size}B",
        f"mwhanna/{transcoder_set}",
        _qwen3,
        tiny_tokenizers.qwen3,
        per_layer("mlp.hook_in", "mlp.hook_out", dtype=_16_BIT),
    )


def _gemma3_family(
    model: str, transcoder_set: str, transcoders: Callable[[str], Repositories]
) -> Family:
    is_text = any(f"-{size}" in model for size in ("270m", "1b"))
    return Family(
        model,
        f"mwhanna/{transcoder_set}",
        _gemma3_text if is_text else _gemma3,
        tiny_tokenizers.gemma3 if model.endswith("-it") else tiny_tokenizers.gemma3_base,
        transcoders,
    )


def _converted(*, skip: bool = True) -> Callable[[str], Repositories]:
    """Gemma Scope 2 in circuit-tracer's format."""
    return per_layer(*_GEMMA_SCOPE_2, skip=skip, jump=True)


_SMALL_AFFINE = "transcoder_all/width_16k_l0_small_affine"

# The sets of the registry in their real layouts: files, names of tensors, dtypes, configuration.
PUBLISHED = {
    "Gemma 2, per layer, safetensors": Family(
        "google/gemma-2-2b",
        "mwhanna/gemma-scope-transcoders",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        per_layer("ln2.hook_normalized", "hook_mlp_out", jump=True),
    ),
    "Gemma 2, per layer": Family(
        "google/gemma-2-2b",
        "mntss/gemma-scope-transcoders",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        gemma_scope,
    ),
    "Gemma 2, cross-layer": Family(
        "google/gemma-2-2b",
        "mntss/clt-gemma-2-2b-2.5M",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        partial(cross_layer, jump=False, dtype=_16_BIT),
    ),
    "Gemma 2, smaller cross-layer": Family(
        "google/gemma-2-2b",
        "mntss/clt-gemma-2-2b-426k",
        _gemma2,
        tiny_tokenizers.gemma2_base,
        partial(cross_layer, jump=False, dtype=_16_BIT),
    ),
    "Qwen 3 0.6B": _qwen3_family("0.6", "qwen3-0.6b-transcoders-lowl0"),
    "Qwen 3 1.7B": _qwen3_family("1.7", "qwen3-1.7b-transcoders-lowl0"),
    "Qwen 3": _qwen3_family("4", "qwen3-4b-transcoders"),
    "Qwen 3 8B": _qwen3_family("8", "qwen3-8b-transcoders"),
    "Qwen 3 14B": _qwen3_family("14", "qwen3-14b-transcoders-lowl0"),
    "Llama 3, skip": Family(
        "meta-llama/Llama-3.2-1B",
        "mntss/transcoder-Llama-3.2-1B",
        _llama,
        tiny_tokenizers.llama3,
        per_layer("hook_resid_mid", "hook_mlp_out", skip=True, dtype=_16_BIT),
    ),
    "Llama 3, cross-layer": Family(
        "meta-llama/Llama-3.2-1B",
        "mntss/clt-llama-3.2-1b-524k",
        _llama,
        tiny_tokenizers.llama3,
        partial(cross_layer, dtype=_16_BIT),
    ),
    "Llama 3 chat, TopK": Family(
        "meta-llama/Llama-3.1-8B-Instruct",
        "facebook/crv-8b-instruct-transcoders",
        _llama,
        tiny_tokenizers.llama3,
        per_layer(
            "mlp.hook_in",
            "mlp.hook_out",
            dtype=_16_BIT,
            more="model_name: meta-llama/Llama-3.1-8B-Instruct\nactivation: topk",
            n_features=160,  # it keeps 128
        ),
    ),
    "Gemma 3 270M": _gemma3_family(
        "google/gemma-3-270m",
        "gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small",
        _converted(skip=False),
    ),
    "Gemma 3 270M, cross-layer, affine": _gemma3_family(
        "google/gemma-3-270m",
        "gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine",
        gemma_scope_2(clt=True, skip=True),
    ),
    "Gemma 3 270M chat": _gemma3_family(
        "google/gemma-3-270m-it",
        "gemma-scope-2-270m-it/transcoder_all/width_16k_l0_big",
        _converted(skip=False),
    ),
    "Gemma 3 1B": _gemma3_family(
        "google/gemma-3-1b-pt", f"gemma-scope-2-1b-pt/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 1B chat": _gemma3_family(
        "google/gemma-3-1b-it", f"gemma-scope-2-1b-it/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 4B": _gemma3_family(
        "google/gemma-3-4b-pt", f"gemma-scope-2-4b-pt/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 chat, affine in a folder": _gemma3_family(
        "google/gemma-3-4b-it",
        "gemma-scope-2-4b-it/transcoder_all/width_262k_l0_small_affine",
        _converted(),
    ),
    "Gemma 3 12B": _gemma3_family(
        "google/gemma-3-12b-pt", f"gemma-scope-2-12b-pt/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 12B chat": _gemma3_family(
        "google/gemma-3-12b-it", f"gemma-scope-2-12b-it/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 27B chat": _gemma3_family(
        "google/gemma-3-27b-it", f"gemma-scope-2-27b-it/{_SMALL_AFFINE}", _converted()
    ),
    "Gemma 3 27B, listed": _gemma3_family(
        "google/gemma-3-27b-pt",
        "gemma-scope-2-27b-pt/transcoder_all/width_262k_l0_small",
        gemma_scope_2(),
    ),
    "GPT-OSS, cross-layer": Family(
        "openai/gpt-oss-20b",
        "mntss/clt-131k",
        _gpt_oss,
        tiny_tokenizers.gpt2,
        partial(cross_layer, dtype=_16_BIT),
    ),
}
FAMILIES = {
    **PUBLISHED,
    "GPT-2": Family(
        "openai-community/gpt2",
        "someone/gpt2-transcoders",
        _gpt2,
        tiny_tokenizers.gpt2,
        per_layer("ln2.hook_normalized", "hook_mlp_out", jump=True),
    ),
}


# The registry's complete sets.
_LLAMA_SCOPE_2 = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B"
COMPLETE = {
    f"Qwen 3 1.7B, complete {expansion}": Family(
        "Qwen/Qwen3-1.7B",
        f"{_LLAMA_SCOPE_2}/{expansion}/k64",
        _qwen3,
        tiny_tokenizers.qwen3,
        complete(N_LAYERS, D_MODEL),
    )
    for expansion in ("8x", "32x")
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
    write_repositories(cache, family.transcoders(family.transcoder_set))
    return snapshot
