"""A TransformerLens model built here computes what the Hugging Face model computes."""

import pytest
import torch
from transformer_lens import HookedTransformer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from loading.hooked_config import MAX_CONTEXT, UnsupportedArchitectureError, hooked_config
from loading.transformerlens_engine import hooked_model

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
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.4
    ),
    "gpt2 scaled by layer": GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        initializer_range=0.4,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "llama, large rope base": LlamaConfig(**SHAPE, rope_theta=500_000.0),
    "llama, scaled rope": LlamaConfig(**SHAPE, rope_theta=500_000.0, rope_scaling=LLAMA3_ROPE),
    "llama, ungrouped heads": LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "qwen3": Qwen3Config(**SHAPE, rope_theta=1_000_000.0),
    "qwen3, tied": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SHAPE, query_pre_attn_scalar=24, sliding_window=8),
    "gemma2, no caps": Gemma2Config(
        **SHAPE,
        query_pre_attn_scalar=16,
        sliding_window=64,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
}


def hugging_face_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_hugging_face_s(config):
    hf_model = hugging_face_model(config)
    model = hooked_model(HookedTransformer, hf_model, "tiny", torch.device("cpu"), torch.float32)
    tokens = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = hf_model(tokens).logits
        ours = model(tokens)
    assert (ours.log_softmax(-1) - expected.log_softmax(-1)).abs().max() < 1e-4


def test_the_context_is_the_model_s_own_up_to_a_bound():
    def context(positions):
        config = Qwen3Config(**{**SHAPE, "max_position_embeddings": positions})
        config.architectures = ["Qwen3ForCausalLM"]
        cpu = torch.device("cpu")
        return hooked_config(config, model_name="m", device=cpu, dtype=torch.float32).n_ctx

    assert context(100) == 100
    assert context(40_960) == MAX_CONTEXT


def test_an_architecture_without_a_conversion_is_named_with_those_that_have_one():
    config = MistralConfig()
    config.architectures = ["MistralForCausalLM"]
    with pytest.raises(UnsupportedArchitectureError, match=r"MistralForCausalLM.*Gemma2"):
        hooked_config(config, model_name="m", device=torch.device("cpu"), dtype=torch.float32)


def test_an_unknown_rope_scaling_is_refused_rather_than_ignored():
    config = LlamaConfig(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0})
    config.architectures = ["LlamaForCausalLM"]
    with pytest.raises(UnsupportedArchitectureError, match="linear"):
        hooked_config(config, model_name="m", device=torch.device("cpu"), dtype=torch.float32)
