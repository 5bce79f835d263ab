"""A tiny GPT-OSS and its cross-layer transcoders, each in the layout that is published."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from safetensors.torch import save_file
from transformers import GptOssConfig, PreTrainedTokenizerFast

from tests.support.hugging_face_models import hugging_face_model
from tests.support.model_cache import files_of, write_repository
from tests.support.tiny_sets import config_yaml
from tests.support.tiny_tokenizers import byte_level

MODEL, TRANSCODER_SET = "openai/gpt-oss-20b", "mntss/clt-131k"
N_LAYERS, D_MODEL, N_FEATURES = 3, 64, 96

# Harmony, shortened: a system block of its own, the caller's as a developer's, a channel in the
# assistant's turns, and a generation prompt that stops before it.
TEMPLATE = (
    "{{ '<|start|>system<|message|>You are ChatGPT.\nCurrent date: ' }}"
    "{{ strftime_now('%Y-%m-%d') }}{{ '\n\nReasoning: medium<|end|>' }}"
    "{% if messages[0].role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% elif message.role == 'user' %}"
    "{{ '<|start|>user<|message|>' + message.content + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# What an MXFP4 number's four bits stand for, without its block's scale.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def tokenizer() -> PreTrainedTokenizerFast:
    markers = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>"]
    backend = byte_level(["<|startoftext|>", "<|endoftext|>", "<|return|>", *markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def config(d_vocab: int = 97, **changes: Any) -> GptOssConfig:
    shape = {
        "vocab_size": d_vocab, "hidden_size": D_MODEL, "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "initializer_range": 0.2,
    }  # fmt: skip
    # Sliding layers first, and the rope of the published one, which needs its context.
    return GptOssConfig(**{**shape, **changes})


def save_quantised(directory: Path, config: GptOssConfig) -> Any:
    """Save a model as it is published, its experts in MXFP4; returns it with their numbers.

    Blocks of 32 numbers share a scale, a power of two: (expert, column, block, 16 bytes).
    """
    model = hugging_face_model(config)
    generator = torch.Generator().manual_seed(3)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, n_rows, n_columns = tensors.pop(name).shape
        shape = (n_experts, n_columns, n_rows // 32)
        nibbles = torch.randint(0, 16, (*shape, 32), generator=generator)
        scales = torch.randint(122, 126, shape, generator=generator)
        numbers = (FP4[nibbles] * 2.0 ** (scales[..., None] - 127)).flatten(2).transpose(1, 2)
        with torch.no_grad():
            model.get_parameter(name).copy_(numbers)
        packed = nibbles[..., 0::2] + 16 * nibbles[..., 1::2]
        tensors[f"{name}_blocks"] = packed.to(torch.uint8).contiguous()
        tensors[f"{name}_scales"] = scales.to(torch.uint8)
    model.config.save_pretrained(directory)
    file = directory / "config.json"
    stored = json.loads(file.read_text()) | {
        "experts_per_token": 2,
        "initial_context_length": 4096,
        "swiglu_limit": 7.0,
        "quantization_config": {
            "modules_to_not_convert": [
                *("model.layers.*.self_attn", "model.layers.*.mlp.router"),
                *("model.embed_tokens", "lm_head"),
            ],
            "quant_method": "mxfp4",
        },
    }
    file.write_text(json.dumps(stored))
    # Its parts are counted from 0.
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    index: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = f"model-{number:05}-of-00001.safetensors"
        save_file(part, directory / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return model


def transcoders() -> CrossLayerTranscoder:
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(
        N_LAYERS, N_FEATURES, D_MODEL, "relu", lazy_decoder=False, dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(std=0.12 if parameter.ndim > 1 else 0.3)
        clt.b_enc -= 1.0
    return clt


def write_cache(cache: Path) -> Any:
    """Write both repositories into a cache; returns the model in full numbers."""
    words = tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        model = save_quantised(Path(directory), config(len(words)))
        words.save_pretrained(directory)
        (Path(directory) / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [words.eos_token_id, words.pad_token_id]})
        )
        write_repository(cache, MODEL, files_of(Path(directory)))
    with tempfile.TemporaryDirectory() as directory:
        transcoders().to_safetensors(directory)
        files = files_of(Path(directory))
    files["config.yaml"] = config_yaml("cross_layer_transcoder", "hook_resid_mid", "hook_mlp_out")
    write_repository(cache, TRANSCODER_SET, files)
    return model
