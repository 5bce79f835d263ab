"""Tiny random Hugging Face models, and the replacement models that the engines make of them."""

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen3Config,
)

from loading.build import engine_of
from loading.entry import Engine
from tests.support.tiny_models import D_MODEL, D_VOCAB, N_LAYERS, tiny_transcoders, word_tokenizer

# Family, dictionary, with a skip connection: a kind each that both engines run.
BOTH_KINDS = [
    ("llama", "jump_relu", True),
    ("qwen3", "relu", False),
    ("gemma2", "cross_layer_jump_relu", False),
    ("gemma3", "jump_relu", False),
    ("gemma3 with vision", "cross_layer_relu", True),
]

_SHAPE: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
# Local attention that is shorter than the prompts, and a layer of global attention.
_SLIDING: dict[str, Any] = {
    **_SHAPE,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GEMMA: dict[str, Any] = {**_SLIDING, "query_pre_attn_scalar": 24}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}

# Configuration and where transcoders read and write, which has to be in circuit-tracer's mapping.
FAMILIES: dict[str, tuple[Any, str]] = {
    "llama": (LlamaConfig(**_SHAPE, rope_theta=500_000.0), "residual"),
    "qwen3": (Qwen3Config(**_SHAPE), "mlp"),
    "gemma2": (Gemma2Config(**_GEMMA), "gemma scope"),
    "gemma3": (Gemma3TextConfig(**_GEMMA), "gemma scope"),
    "gemma3 with vision": (
        Gemma3Config(text_config=_GEMMA, vision_config=_VISION, mm_tokens_per_image=4),
        "gemma scope",
    ),
    "gpt-oss": (GptOssConfig(**_SLIDING, num_local_experts=4, num_experts_per_tok=2), "mlp"),
}


def hugging_face_model(config: Any) -> Any:
    """A model of the configuration with random norms and biases too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(parameter, mean=0.3, std=0.3)
    return model


def new_model(
    engine: Engine,
    family: str,
    dictionary: str = "jump_relu",
    *,
    skip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A replacement model; the same arguments give the same weights with either engine."""
    config, hooks = FAMILIES[family]
    hf_model = hugging_face_model(copy.deepcopy(config))
    transcoders = tiny_transcoders(dictionary, hooks, skip=skip)
    model = engine_of(engine).replacement_model(
        hf_model, transcoders, f"tiny-{family}", torch.device("cpu"), dtype
    )
    model.tokenizer = word_tokenizer()
    # The library steers free attention from a string only.
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return model


@cache
def shared_model(
    engine: Engine, family: str, dictionary: str = "jump_relu", skip: bool = False
) -> Any:
    return new_model(engine, family, dictionary, skip=skip)
