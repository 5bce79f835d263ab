"""A checkpoint's tensors, straight from its files, are those of the model that was saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from loading import WeightsError, WeightsMismatchError
from loading.checkpoint import open_checkpoint, weight_files
from loading.model_folder import INDEX, SINGLE_FILE, ModelNeeds
from loading.transformerlens_engine import hooked_model
from tests.support.model_configs import CONFIGS, SHAPE, hugging_face_model

CPU = torch.device("cpu")


def hooked_from(directory, config, dtype=torch.float32):
    checkpoint = open_checkpoint(directory, config, device=CPU, dtype=dtype)
    return hooked_model(HookedTransformer, checkpoint, "tiny", CPU, dtype)


def assert_same_weights(model, expected):
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_model_from_its_files_is_the_one_from_hugging_face_s_model(config, dtype, tmp_path):
    hf_model = hugging_face_model(config)
    hf_model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(weight_files(tmp_path)) > 1
    expected = hooked_model(HookedTransformer, hf_model.to(dtype), "tiny", CPU, dtype)
    assert_same_weights(hooked_from(tmp_path, hf_model.config, dtype), expected)


def test_tensors_outlive_the_files_they_came_from(tmp_path):
    hf_model = hugging_face_model(CONFIGS["qwen3"])
    hf_model.save_pretrained(tmp_path)
    model = hooked_from(tmp_path, hf_model.config)
    (tmp_path / SINGLE_FILE).unlink()
    assert torch.equal(model.W_E, hf_model.model.embed_tokens.weight)


def test_tied_embeddings_are_in_memory_once(tmp_path):
    hf_model = hugging_face_model(CONFIGS["qwen3, tied"])
    hf_model.save_pretrained(tmp_path)
    model = hooked_from(tmp_path, hf_model.config)
    assert model.W_U.data_ptr() == model.W_E.data_ptr()
    assert torch.equal(model.W_U, model.W_E.T)


def test_a_checkpoint_without_the_head_s_prefix_is_read_as_one_with_it(tmp_path):
    hf_model = hugging_face_model(CONFIGS["gpt2"])
    hf_model.transformer.save_pretrained(tmp_path)  # as GPT-2 is published
    hf_model.config.architectures = ["GPT2LMHeadModel"]
    assert "wte.weight" in load_file(tmp_path / SINGLE_FILE)
    expected = hooked_model(HookedTransformer, hf_model, "tiny", CPU, torch.float32)
    assert_same_weights(hooked_from(tmp_path, hf_model.config), expected)


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
def test_of_a_multimodal_checkpoint_the_language_model_alone_is_read(layout, tmp_path):
    text = Gemma3TextConfig(**SHAPE)
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config = Gemma3Config(
        text_config=text, vision_config=vision, architectures=["Gemma3ForCausalLM"]
    )
    model = Gemma3ForConditionalGeneration(config)
    stored = {}
    for name, tensor in model.model.language_model.state_dict().items():
        stored[layout + name] = tensor.contiguous()
    stored["vision_tower.weight"] = torch.ones(3)
    save_file(stored, tmp_path / SINGLE_FILE)
    checkpoint = open_checkpoint(tmp_path, config, device=CPU, dtype=torch.float32)
    weight = checkpoint.model.layers[1].mlp.up_proj.weight
    assert checkpoint.lm_head.weight is checkpoint.model.embed_tokens.weight
    assert torch.equal(weight, model.model.language_model.layers[1].mlp.up_proj.weight)


def saved_llama(directory: Path):
    hf_model = hugging_face_model(CONFIGS["llama, large rope base"])
    hf_model.save_pretrained(directory)
    return hf_model.config


def test_a_directory_without_safetensors_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no model.safetensors in {tmp_path}"):
        weight_files(tmp_path)


def test_a_part_that_the_index_names_and_that_is_missing_is_named(tmp_path):
    saved_llama(tmp_path)
    first = (tmp_path / SINGLE_FILE).rename(tmp_path / "model-00001-of-00002.safetensors")
    parts = {"a": first.name, "b": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(FileNotFoundError, match="no model-00002-of-00002"):
        weight_files(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    config = saved_llama(tmp_path)
    tensors = load_file(tmp_path / SINGLE_FILE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(WeightsMismatchError, match=r"lack model.layers.1.mlp.up_proj, .*down_proj"):
        hooked_from(tmp_path, config)


def test_a_damaged_file_is_refused(tmp_path):
    config = saved_llama(tmp_path)
    path = tmp_path / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=f"{SINGLE_FILE} is damaged: replace it"):
        hooked_from(tmp_path, config)


def test_weights_of_another_shape_are_refused(tmp_path):
    config = saved_llama(tmp_path)
    config.vocab_size += 1
    with pytest.raises(WeightsMismatchError, match=r"another shape than the model's embed\.W_E"):
        hooked_from(tmp_path, config)


def test_weights_that_a_converter_leaves_out_are_named(tmp_path, monkeypatch):
    hf_model = hugging_face_model(CONFIGS["llama, large rope base"])
    engine = "loading.transformerlens_engine"
    monkeypatch.setattr(f"{engine}.get_pretrained_state_dict", lambda *_, **__: {})
    with pytest.raises(WeightsMismatchError, match=r"embed.W_E.*blocks.0.attn.W_Q"):
        hooked_model(HookedTransformer, hf_model, "tiny", CPU, torch.float32)


def test_a_single_file_beside_an_index_is_what_is_downloaded_found_and_read(tmp_path):
    shard = "model-00001-of-00001.safetensors"
    there = [SINGLE_FILE, INDEX, shard, "config.json", "tokenizer.json"]
    for name in ModelNeeds().files(there, tmp_path):
        (tmp_path / name).write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert ModelNeeds().missing(tmp_path) == []
    assert list(weight_files(tmp_path)) == [tmp_path / SINGLE_FILE]
