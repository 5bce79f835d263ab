"""Weights that aren't those of the configuration's model stop the start, with either engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

import model_loader
import steering
from loading import WeightsMismatchError
from loading.build import engine_of
from loading.model_folder import SINGLE_FILE
from loading.registry import DEMO
from model_loader import ModelLoadError
from tests.support.demo_worker import demo_settings
from tests.support.hugging_face_models import FAMILIES, hugging_face_model
from tests.support.model_configs import GEMMA3, SHAPE, read_config
from tests.support.tiny_models import prompt_tokens, tiny_transcoders

ENGINES: list[Any] = ["transformerlens", "nnsight"]
CPU = torch.device("cpu")
TIED = {"tie_word_embeddings": True}

Tensors = dict[str, torch.Tensor]


def load(engine: Any, directory: Path, hooks: str = "mlp") -> Any:
    module, config = engine_of(engine), read_config(directory)
    transcoders = tiny_transcoders("relu", hooks)
    return module.load(directory, config, transcoders, "tiny", CPU, torch.float32)


def save(directory: Path, config: PretrainedConfig, change: Callable[[Tensors], Any]) -> Any:
    """Save a model, its tensors changed."""
    model = hugging_face_model(config)
    model.save_pretrained(directory)
    tensors = load_file(directory / SINGLE_FILE)
    change(tensors)
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})
    return model


def without(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def with_one(name: str, *shape: int) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: torch.full(shape, 0.7)})


LAYER = "model.layers.1."
# A configuration, what is done to its weights, and what the error names.
WRONG: dict[str, tuple[PretrainedConfig, Callable[[Tensors], Any], str]] = {
    "a matrix is missing": (
        LlamaConfig(**SHAPE),
        without(f"{LAYER}mlp.up_proj.weight"),
        r"lack model.layers.1.mlp.up_proj",
    ),
    "a norm is missing": (
        Qwen3Config(**SHAPE),
        without(f"{LAYER}self_attn.q_norm.weight"),
        r"lack model.layers.1.self_attn.q_norm",
    ),
    "a layer is missing": (
        LlamaConfig(**SHAPE),
        lambda t: [t.pop(name) for name in list(t) if name.startswith(LAYER)],
        "lack model.layers.1",
    ),
    "an unembedding of its own is missing": (
        LlamaConfig(**SHAPE), without("lm_head.weight"), "lack lm_head"
    ),
    "the embeddings that serve twice are missing": (
        LlamaConfig(**SHAPE, **TIED), without("model.embed_tokens.weight"),
        "lack .*model.embed_tokens",
    ),
    "a vocabulary is longer": (
        LlamaConfig(**SHAPE), with_one("model.embed_tokens.weight", 99, 32),
        "another shape than the model's (embed.W_E|model.embed_tokens)",
    ),
    "a bias is left over": (
        Qwen3Config(**SHAPE), with_one(f"{LAYER}self_attn.q_proj.bias", 64),
        "the model doesn't have: model.layers.1.self_attn.q_proj.bias",
    ),
    "a layer is left over": (
        Gemma3TextConfig(**GEMMA3), with_one("model.layers.3.mlp.up_proj.weight", 48, 32),
        "the model doesn't have: model.layers.3.mlp.up_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_not_the_model_s_are_named(case: str, engine: Any, tmp_path: Path) -> None:
    config, change, words = WRONG[case]
    save(tmp_path, config, change)
    with pytest.raises(WeightsMismatchError, match=f"{words}.*download the model anew"):
        load(engine, tmp_path)


# What checkpoints of sound models hold beside what is read.
BESIDE: dict[str, tuple[PretrainedConfig, Callable[[Tensors], Any]]] = {
    "the unembedding of tied embeddings, as Qwen3's": (
        Qwen3Config(**SHAPE, **TIED), with_one("lm_head.weight", 97, 32)
    ),
    "rotary frequencies, as older Llamas'": (
        LlamaConfig(**SHAPE), with_one(f"{LAYER}self_attn.rotary_emb.inv_freq", 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", BESIDE)
def test_what_a_sound_checkpoint_holds_beside_them_is_left(
    case: str, engine: Any, tmp_path: Path
) -> None:
    config, change = BESIDE[case]
    saved = save(tmp_path, config, change)
    tokens = prompt_tokens()
    with torch.no_grad():
        expected = saved(tokens[None]).logits[0, -1]
    ours = steering.next_token_logits(load(engine, tmp_path), tokens.tolist())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("there", [True, False], ids=["there", "cut off"])
def test_a_part_for_images_is_of_no_account(there: bool, engine: Any, tmp_path: Path) -> None:
    def cut_off(tensors: Tensors) -> None:
        vision = [n for n in tensors if "vision_tower" in n or "multi_modal_projector" in n]
        assert len(vision) > 10
        if not there:
            without(*vision)(tensors)

    saved = save(tmp_path, FAMILIES["gemma3 with vision"][0], cut_off)
    saved.set_attn_implementation("eager")
    tokens, model = prompt_tokens(), load(engine, tmp_path, "gemma scope")
    with torch.no_grad():
        expected = saved(tokens[None]).logits[0, -1]
    ours = steering.next_token_logits(model, tokens.tolist())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_start_fails_with_their_names(engine: Any, tmp_path: Path) -> None:
    demo = Path(DEMO.model)
    for file in demo.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tensors = load_file(demo / SINGLE_FILE)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    (tmp_path / SINGLE_FILE).unlink()
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    settings = demo_settings(
        model_engine=engine,
        model_id=str(tmp_path),
        transcoder_set=DEMO.transcoder_set,
    )
    with pytest.raises(ModelLoadError, match="down_proj"):
        model_loader.load(settings)
