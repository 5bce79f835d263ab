"""A configuration that transformers 5 wrote gives the model that transformers 4 made of the old."""

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

import model_loader
import steering
from loading import UnsupportedArchitectureError
from loading.checkpoint import open_checkpoint
from loading.registry import DEMO
from loading.transformerlens_engine import hooked_model
from model_loader import ModelLoadError
from tests.support.demo_worker import demo_settings
from tests.support.model_configs import (
    CONFIGS,
    GEMMA3,
    GPT2_SHAPE,
    LINEAR_ROPE,
    LLAMA3_ROPE,
    SHAPE,
    WINDOWED,
    YARN_ROPE,
    assert_same_logits,
    gemma3_with_vision,
    hugging_face_model,
    prompt_tokens,
    read_config,
)

CPU = torch.device("cpu")
# No interpolation would be left of a longer context's.
GPT_OSS_ROPE = {**YARN_ROPE, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
ROPE_3 = {
    "full_attention": {**LINEAR_ROPE, "rope_theta": 3e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

# A configuration, and its `rope_parameters` as transformers 5 saves it.
MOVED: dict[str, tuple[PretrainedConfig, Any]] = {
    "llama": (
        LlamaConfig(**SHAPE, rope_theta=5e5, rope_scaling=LLAMA3_ROPE),
        {**LLAMA3_ROPE, "rope_theta": 5e5},
    ),
    "llama, default": (
        LlamaConfig(**SHAPE, rope_theta=300.0, tie_word_embeddings=True),
        {"rope_type": "default", "rope_theta": 300.0},
    ),
    "qwen3, windows and yarn": (
        Qwen3Config(**SHAPE, **WINDOWED, rope_theta=1e6, rope_scaling=YARN_ROPE),
        {**YARN_ROPE, "rope_theta": 1e6},
    ),
    "gemma2": (
        Gemma2Config(**SHAPE, query_pre_attn_scalar=24, sliding_window=8, rope_theta=300.0),
        {"rope_type": "default", "rope_theta": 300.0},
    ),
    "gemma3": (Gemma3TextConfig(**GEMMA3, rope_theta=3e4, rope_scaling=LINEAR_ROPE), ROPE_3),
    "gemma3 with vision": (gemma3_with_vision(rope_theta=3e4, rope_scaling=LINEAR_ROPE), ROPE_3),
    "gpt-oss": (
        GptOssConfig(
            **SHAPE, sliding_window=8, num_local_experts=4, rope_theta=700.0,
            rope_scaling=GPT_OSS_ROPE,
        ),
        {**GPT_OSS_ROPE, "rope_theta": 700.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_transformers_4_is_read_as_transformers_reads_it(
    name: str, tmp_path: Path
) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    ours, expected = read_config(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert type(ours) is type(expected)
    assert ours.to_dict() == expected.to_dict()
    assert ours.name_or_path == str(tmp_path)


def text_of(stored: dict[str, Any]) -> dict[str, Any]:
    return stored.get("text_config", stored)


def save(directory: Path, config: PretrainedConfig, **text: Any) -> Any:
    """Save a model as transformers 5 does, with these in its language model's configuration."""
    model = hugging_face_model(copy.deepcopy(config))
    model.save_pretrained(directory)
    file = directory / "config.json"
    stored = json.loads(file.read_text())
    stored["transformers_version"] = "5.24.0"
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        text_of(stored).pop(name, None)
    text_of(stored).update(text)
    file.write_text(json.dumps(stored))
    return model


def assert_loaded_as_saved(folder: Path, saved: Any, *, hooked: bool = True) -> None:
    """The configuration that is read gives the model's logits, in TransformerLens too."""
    read = read_config(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=read, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        assert torch.equal(model(prompt_tokens()).logits, saved(prompt_tokens()).logits)
    if hooked:
        checkpoint = open_checkpoint(folder, read, device=CPU, dtype=torch.float32)
        assert_same_logits(
            hooked_model(HookedTransformer, checkpoint, "m", CPU, torch.float32), saved
        )


@pytest.mark.parametrize("name", MOVED)
def test_moved_rope_settings_give_the_logits_of_the_old_names(name: str, tmp_path: Path) -> None:
    config, rope = MOVED[name]
    saved = save(tmp_path, config, rope_parameters=rope)
    assert_loaded_as_saved(tmp_path, saved, hooked=name != "gpt-oss")


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_the_worker_reads_them_so(engine: str, tmp_path: Path) -> None:
    demo = Path(DEMO.model)
    expected = json.loads((demo / "config.json").read_text())
    for file in demo.iterdir():
        (tmp_path / file.name).symlink_to(file)
    moved = {"rope_theta": expected.pop("rope_theta", 1e4), "rope_type": "default"}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**expected, "rope_parameters": moved}))
    settings = {"model_engine": engine, "transcoder_set": DEMO.transcoder_set}
    logits = []
    for directory in (demo, tmp_path):
        model = model_loader.load(demo_settings(model_id=str(directory), **settings)).model
        logits.append(steering_logits(model))
    assert torch.equal(*logits)
    # …and that they make a difference.
    (tmp_path / "config.json").write_text(
        json.dumps({**expected, "rope_parameters": {**moved, "rope_theta": 50.0}})
    )
    model = model_loader.load(demo_settings(model_id=str(tmp_path), **settings)).model
    assert not torch.allclose(steering_logits(model), logits[0])


def steering_logits(model: Any) -> torch.Tensor:
    return steering.next_token_logits(model, list(range(5, 17)))


REFUSED: dict[str, tuple[PretrainedConfig, dict[str, Any], str]] = {
    "a rope that version 4 lacks": (
        LlamaConfig(**SHAPE), {"rope_parameters": {"rope_type": "proportional"}}, "proportional"
    ),
    "a setting of a rope that it lacks": (
        LlamaConfig(**SHAPE), {"rope_parameters": {"mrope_section": [4, 4]}}, "mrope_section"
    ),
    "ropes by layer where it has one": (
        Qwen3Config(**SHAPE), {"rope_parameters": ROPE_3}, "rope_parameters by layer type.*qwen3"
    ),
    "one rope where it has two": (
        Gemma3TextConfig(**GEMMA3), {"rope_parameters": {"rope_theta": 1e4}}, "aren't by layer type"
    ),
    "a scaling where it has none": (
        Gemma3TextConfig(**GEMMA3),
        {"rope_parameters": {"sliding_attention": LINEAR_ROPE}},
        "rope scaling of sliding_attention",
    ),
    "two values of one setting": (
        LlamaConfig(**SHAPE),
        {"rope_theta": 2e4, "rope_parameters": {"rope_theta": 1e4}},
        "rope_theta=20000.0 and, in rope_parameters, 10000.0",
    ),
    "a scaling under the old name alone": (
        LlamaConfig(**SHAPE),
        {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {"rope_type": "default"}},
        "rope_scaling=.*llama3.* and, in rope_parameters, None",
    ),
    "layers of unlike shapes": (
        LlamaConfig(**SHAPE), {"per_layer_config": {"1": {"head_dim": 8}}}, "per_layer_config"
    ),
    "a model type of a later version": (LlamaConfig(**SHAPE), {"model_type": "llama9"}, "llama9"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_old_name_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, changes, words = REFUSED[case]
    stored = {**config.to_dict(), **changes}
    if "rope_theta" not in changes:
        stored.pop("rope_theta", None)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UnsupportedArchitectureError, match=words):
        read_config(tmp_path)


def test_settings_that_both_versions_find_are_read(tmp_path: Path) -> None:
    stored = LlamaConfig(**SHAPE, rope_theta=5e5, rope_scaling=LLAMA3_ROPE).to_dict()
    stored["rope_parameters"] = {**LLAMA3_ROPE, "rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    read = read_config(tmp_path)
    assert (read.rope_theta, read.rope_scaling) == (5e5, LLAMA3_ROPE)


def test_a_language_model_s_part_need_not_name_its_type(tmp_path: Path) -> None:
    save(tmp_path, gemma3_with_vision(), rope_parameters=ROPE_3)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    del stored["text_config"]["model_type"]
    file.write_text(json.dumps(stored))
    text = read_config(tmp_path).text_config
    assert (text.rope_theta, text.rope_local_base_freq) == (3e4, 100.0)
    assert text.rope_scaling == LINEAR_ROPE


def test_a_share_of_the_head_that_turns_keeps_its_name(tmp_path: Path) -> None:
    save(tmp_path, LlamaConfig(**SHAPE), rope_parameters={"partial_rotary_factor": 0.5})
    assert read_config(tmp_path).partial_rotary_factor == 0.5


@pytest.mark.parametrize("version", ["4.57.3", "5.24.0"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_are_tied_as_the_version_that_saved_them_says(
    version: str, tied: bool, tmp_path: Path
) -> None:
    config = gemma3_with_vision(tie_word_embeddings=tied)
    saved = hugging_face_model(config)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text()) | {"transformers_version": version}
    # Each version leaves the other's entry at its default.
    stored["tie_word_embeddings"] = tied if version[0] == "5" else True
    stored["text_config"]["tie_word_embeddings"] = tied if version[0] == "4" else True
    file.write_text(json.dumps(stored))
    assert_loaded_as_saved(tmp_path, saved)


def test_an_attention_both_ways_that_is_null_is_off(tmp_path: Path) -> None:
    save(tmp_path, Gemma2Config(**SHAPE, sliding_window=8), use_bidirectional_attention=None)
    read = read_config(tmp_path)
    checkpoint = open_checkpoint(tmp_path, read, device=CPU, dtype=torch.float32)
    hooked_model(HookedTransformer, checkpoint, "m", CPU, torch.float32)


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_code_that_a_model_brings_is_not_run_and_nothing_is_asked(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Path(DEMO.model)
    for file in demo.iterdir():
        (tmp_path / file.name).symlink_to(file)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    for name, keys in {
        "config.json": ("AutoConfig", "AutoModelForCausalLM"),
        "tokenizer_config.json": ("AutoTokenizer",),
    }.items():
        stored = json.loads((demo / name).read_text())
        stored["auto_map"] = dict.fromkeys(keys, "own.Own")
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(stored))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    settings = demo_settings(
        model_engine=engine,
        model_id=str(tmp_path),
        transcoder_set=DEMO.transcoder_set,
    )
    model_loader.load(settings)
    assert sys.stdin.read() == "y\n" * 9
    assert not ran.exists()
    stored = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelLoadError, match=r"model_type='own'.*isn't run"):
        model_loader.load(settings)
    assert not ran.exists()


def test_a_gpt_2_has_nothing_to_move(tmp_path: Path) -> None:
    save(tmp_path, GPT2Config(**GPT2_SHAPE))
    assert read_config(tmp_path).n_embd == GPT2_SHAPE["n_embd"]
