"""What a Hugging Face model's configuration may say on the nnsight engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from loading import UnsupportedArchitectureError
from loading.hugging_face_model import read_model
from tests.support.model_configs import (
    GEMMA3,
    LONG,
    SHAPE,
    gemma3_with_vision,
    hugging_face_model,
    prompt_tokens,
    read_config,
)

LONGROPE = {"rope_type": "longrope", "short_factor": LONG, "long_factor": LONG, "factor": 2.0}
REFUSED: list[tuple[PretrainedConfig, str]] = [
    (LlamaConfig(**SHAPE, pruned_heads={0: [1]}), "pruned_heads"),
    (LlamaConfig(**SHAPE, partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    (LlamaConfig(**SHAPE, rope_scaling=LONGROPE), "longrope"),
    (LlamaConfig(**SHAPE, quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
    (Qwen3Config(**SHAPE, quantization_config={"quant_method": "mxfp4"}), r"quantised \(mxfp4\)"),
    (Gemma2Config(**SHAPE, use_bidirectional_attention=True), "use_bidirectional_attention"),
    (Gemma3TextConfig(**GEMMA3, use_bidirectional_attention=True), "use_bidirectional_attention"),
    (Gemma3TextConfig(**GEMMA3, attn_logit_softcapping=50.0), "attn_logit_softcapping"),
    (gemma3_with_vision(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
    (gemma3_with_vision(final_logit_softcapping=30.0), "final_logit_softcapping"),
]
# transformers' own classes compute these; the other engine has no conversion.
SERVED: list[PretrainedConfig] = [
    LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    LlamaConfig(**SHAPE, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    Gemma2Config(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0}),
    Gemma3TextConfig(**GEMMA3, final_logit_softcapping=30.0),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_value_that_would_be_left_unread_is_refused_before_any_weight_is_read(
    config: Any, words: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitectureError, match=words):
        read_model(tmp_path, read_config(tmp_path), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("config", SERVED, ids=lambda config: config.model_type)
def test_a_value_that_transformers_computes_is_served(config: Any, tmp_path: Path) -> None:
    saved = hugging_face_model(config)
    saved.save_pretrained(tmp_path)
    model = read_model(
        tmp_path, read_config(tmp_path), device=torch.device("cpu"), dtype=torch.float32
    ).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(model(prompt_tokens()).logits, saved(prompt_tokens()).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_weights_are_of_the_dtype_that_is_asked_for(dtype: Any, tmp_path: Path) -> None:
    hugging_face_model(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    model = read_model(tmp_path, read_config(tmp_path), device=torch.device("cpu"), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config.dtype == dtype


NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_weights_are_read_onto_the_device_and_are_in_memory_once(
    device: str, tmp_path: Path
) -> None:
    hugging_face_model(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    model = read_model(
        tmp_path, read_config(tmp_path), device=torch.device(device), dtype=torch.bfloat16
    )
    assert model.hf_device_map == {"": device}  # transformers put them there, not a later move
    assert {parameter.device.type for parameter in model.parameters()} == {device}
