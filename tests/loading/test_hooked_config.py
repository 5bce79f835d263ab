"""A TransformerLens model built here computes what the Hugging Face model computes."""

import inspect

import pytest
import torch
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import convert_hf_model_config
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.activations import ACT2FN

from loading.hooked_config import (
    _ACTIVATIONS,
    _CONVERTERS,
    MAX_CONTEXT,
    UnsupportedArchitectureError,
    hooked_config,
)
from loading.transformerlens_engine import hooked_model, replacement_model
from tests.support.model_configs import (
    CONFIGS,
    GPT2_SHAPE,
    LINEAR_ROPE,
    LLAMA3_ROPE,
    LONG,
    SHAPE,
    WINDOWED,
    YARN_ROPE,
    assert_same_logits,
    gemma3_with_vision,
    hugging_face_model,
)
from tests.support.tiny_models import tiny_transcoders

CPU = torch.device("cpu")


def configured(config, architecture):
    config.architectures = [architecture]
    return hooked_config(config, model_name="m", device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_hugging_face_s(config):
    hf_model = hugging_face_model(config)
    assert_same_logits(hooked_model(HookedTransformer, hf_model, "m", CPU, torch.float32), hf_model)


@pytest.mark.parametrize("name", ["gemma3, linear rope", "gemma2", "qwen3, windows", "gpt2"])
def test_the_replacement_model_s_logits_equal_hugging_face_s(name):
    # circuit-tracer gives all layers one rope, and Gemma 3 has two.
    hf_model = hugging_face_model(CONFIGS[name])
    transcoders = tiny_transcoders("relu", "mlp")
    model = replacement_model(hf_model, transcoders, "m", CPU, torch.float32)
    assert_same_logits(model, hf_model)
    buffers = {block.attn.mask.data_ptr() for block in model.blocks}
    buffers |= {block.attn.rotary_sin.data_ptr() for block in model.blocks if "gpt2" not in name}
    kinds = {block.attn.attn_type for block in model.blocks}
    assert len(buffers) <= 2 * len(kinds)


# What the published files say, beside the defaults of their classes.
PUBLISHED = {
    "google/gemma-3-4b-it": Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        text_config={
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    ),
    "google/gemma-3-1b-it": Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        hidden_size=1152,
        intermediate_size=6912,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        vocab_size=262_144,
    ),
    "meta-llama/Llama-3.2-1B": LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        rope_scaling={**LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192},
        vocab_size=128_256,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_s_numbers_are_transformer_lens_s_own(name):
    """TransformerLens has them in a table, by name."""
    theirs = convert_hf_model_config(name)
    for elsewhere in ("n_ctx", "tokenizer_name", "initializer_range"):
        theirs.pop(elsewhere, None)
    ours = hooked_config(PUBLISHED[name], model_name=name, device=CPU, dtype=torch.bfloat16)
    assert {key: getattr(ours, key) for key in theirs} == theirs
    assert ours.attn_scale == ours.d_head**0.5


def test_the_context_is_the_model_s_own_up_to_a_bound():
    def context(positions):
        config = Qwen3Config(**{**SHAPE, "max_position_embeddings": positions})
        return configured(config, "Qwen3ForCausalLM").n_ctx

    assert context(100) == 100
    assert context(40_960) == MAX_CONTEXT


def test_an_architecture_without_a_conversion_is_named_with_those_that_have_one():
    with pytest.raises(UnsupportedArchitectureError, match=r"MistralForCausalLM.*Gemma2"):
        configured(MistralConfig(), "MistralForCausalLM")


@pytest.mark.parametrize("name", _ACTIVATIONS)
def test_activation_functions_of_one_name_are_the_same(name):
    x = torch.linspace(-9, 9, 1001)
    torch.testing.assert_close(SUPPORTED_ACTIVATIONS[name](x), ACT2FN[name](x))


REFUSED = {
    "LlamaForCausalLM": [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "relu2"},
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {"quant_method": "fp8"}},
        {"pruned_heads": {0: [1]}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": LONG, "long_factor": LONG}},
    ],
    "Qwen3ForCausalLM": [
        {"attention_bias": True},
        {"hidden_act": "swish"},
        {"rope_scaling": {**YARN_ROPE, "truncate": False}},
        {"rope_scaling": LINEAR_ROPE, **WINDOWED},
        {"layer_types": ["sliding_attention"] * 3},
        {"layer_types": ["chunked_attention"] * 3},
    ],
    "Gemma2ForCausalLM": [
        {"attention_bias": True},
        {"hidden_activation": None},
        {"use_bidirectional_attention": True},
        {"rope_scaling": LINEAR_ROPE},
    ],
    "Gemma3ForCausalLM": [
        {"attention_bias": True},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"rope_scaling": LLAMA3_ROPE},
        {"rope_scaling": YARN_ROPE},
    ],
    "GPT2LMHeadModel": [
        {"add_cross_attention": True},
        {"activation_function": "tanh"},
    ],
}
CLASSES = {
    "LlamaForCausalLM": LlamaConfig,
    "Qwen3ForCausalLM": Qwen3Config,
    "Gemma2ForCausalLM": Gemma2Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
    "GPT2LMHeadModel": GPT2Config,
}


def config_of(architecture, **changes):
    shape = GPT2_SHAPE if architecture == "GPT2LMHeadModel" else SHAPE
    return CLASSES[architecture](**{**shape, "sliding_window": 8, **changes})


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [(architecture, changes) for architecture, cases in REFUSED.items() for changes in cases],
    ids=str,
)
def test_a_value_without_an_exact_conversion_is_refused_by_name(architecture, changes):
    name, value = next(iter(changes.items()))
    named = value["rope_type"] if name == "rope_scaling" else name
    if name in ("hidden_act", "hidden_activation", "activation_function"):
        named = f"activation function '?{value}"
    if "truncate" in str(value):
        named = "truncate"
    configured(config_of(architecture), architecture)
    with pytest.raises(UnsupportedArchitectureError, match=named):
        configured(config_of(architecture, **changes), architecture)


def test_a_quantised_multimodal_model_is_refused():
    config = gemma3_with_vision()
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UnsupportedArchitectureError, match="quantization_config"):
        configured(config, "Gemma3ForConditionalGeneration")


# Parameters of the configurations that the conversion need not read.
WITHOUT_EFFECT = {
    # At training, or on how generation goes about it.
    *("initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp"),
    # On other heads than the language model's.
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    "summary_first_dropout",
    # Weights are converted with the unembedding that the model has (tests above).
    "tie_word_embeddings",
    # In what precision attention is computed (a test above), not what.
    "reorder_and_upcast_attn",
    # Its effect is in layer_types and sliding_window.
    *("use_sliding_window", "max_window_layers"),
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_every_parameter_of_a_configuration_is_read_or_known_to_change_nothing(architecture):
    windowed = {**WINDOWED, "sliding_window": 8} if architecture == "Qwen3ForCausalLM" else {}
    config, read = config_of(architecture, **windowed), set()

    class Watched(type(config)):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    config.__class__ = Watched
    configured(config, architecture)
    parameters = set(inspect.signature(CLASSES[architecture].__init__).parameters)
    assert parameters - {"self", "kwargs"} - read <= WITHOUT_EFFECT


def test_every_converter_is_of_a_tested_class():
    assert set(_CONVERTERS) == {*CLASSES, "Gemma3ForConditionalGeneration"}
