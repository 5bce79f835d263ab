"""Small configurations of every served architecture, and their models with random weights."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    SiglipVisionConfig,
)

from loading.model_config import as_version_4
from loading.model_folder import read_model_config


def read_config(directory: Path) -> PretrainedConfig:
    """The configuration of a model's directory, as it is read at the start."""
    return as_version_4(read_model_config(directory))


SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
GPT2_SHAPE = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.4,
}
GEMMA3 = {
    **SHAPE,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "rope_local_base_freq": 100.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 8.0}
# The turns of a short context, so that 40 tokens meet every branch.
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Factors of a long context, one for each frequency.
LONG = [1.0] * 8
WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}


def gemma3_with_vision(**changes):
    """As google/gemma-3-4b-it is: a language model beside a vision tower."""
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return Gemma3Config(
        text_config={**GEMMA3, **changes}, vision_config=vision.to_dict(), mm_tokens_per_image=4
    )


CONFIGS = {
    "gpt2": GPT2Config(**GPT2_SHAPE),
    "gpt2 scaled by layer": GPT2Config(**GPT2_SHAPE, scale_attn_by_inverse_layer_idx=True),
    "gpt2 not scaled": GPT2Config(**GPT2_SHAPE, scale_attn_weights=False),
    "gpt2, reordered attention": GPT2Config(**GPT2_SHAPE, reorder_and_upcast_attn=True),
    "gpt2, untied, narrow": GPT2Config(**GPT2_SHAPE, tie_word_embeddings=False, n_inner=24),
    "llama, large rope base": LlamaConfig(**SHAPE, rope_theta=500_000.0),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True, hidden_act="gelu_new"),
    "llama, llama3 rope": LlamaConfig(**SHAPE, rope_theta=500_000.0, rope_scaling=LLAMA3_ROPE),
    "llama, linear rope": LlamaConfig(**SHAPE, rope_scaling=LINEAR_ROPE),
    "llama, ungrouped heads": LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "qwen3": Qwen3Config(**SHAPE, rope_theta=1_000_000.0),
    "qwen3, tied": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3, yarn": Qwen3Config(**SHAPE, rope_scaling=YARN_ROPE),
    "qwen3, yarn in full": Qwen3Config(
        **SHAPE,
        rope_scaling={**YARN_ROPE, "beta_fast": 8, "beta_slow": 2, "attention_factor": 0.7},
    ),
    "qwen3, windows": Qwen3Config(**SHAPE, **WINDOWED),
    "qwen3, windows and yarn": Qwen3Config(**SHAPE, **WINDOWED, rope_scaling=YARN_ROPE),
    "gemma2": Gemma2Config(**SHAPE, query_pre_attn_scalar=24, sliding_window=8),
    "gemma2, untied": Gemma2Config(**SHAPE, sliding_window=8, tie_word_embeddings=False),
    "gemma2, no caps": Gemma2Config(
        **SHAPE,
        query_pre_attn_scalar=16,
        sliding_window=64,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma3": Gemma3TextConfig(**GEMMA3),
    "gemma3, linear rope": Gemma3TextConfig(**GEMMA3, rope_scaling=LINEAR_ROPE),
    "gemma3, untied, ungrouped": Gemma3TextConfig(
        **{**GEMMA3, "num_key_value_heads": 4}, tie_word_embeddings=False
    ),
    "gemma3, its own pattern": Gemma3TextConfig(**{**GEMMA3, "layer_types": None}),
    "gemma3 with vision": gemma3_with_vision(),
    "gemma3 with vision, linear rope": gemma3_with_vision(rope_scaling=LINEAR_ROPE),
}


def hugging_face_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def prompt_tokens(n_prompts=2):
    """Tokens (n_prompts, 40): five windows long."""
    return torch.randint(0, 97, (n_prompts, 40), generator=torch.Generator().manual_seed(1))


def assert_same_logits(model, hf_model):
    tokens = prompt_tokens()
    with torch.no_grad():
        expected = hf_model(tokens).logits
        ours = model(tokens)
    assert (ours.log_softmax(-1) - expected.log_softmax(-1)).abs().max() < 1e-4
