"""The committed Lorsas do what demo/README.md says of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from demo import athlete_features, evaluate_lorsas
from demo.lorsas import COMMITTED, Lorsa, folder, load, load_committed
from demo.train_lorsas import LorsaTraining, record, record_documents, train_lorsa

N_LAYERS = 4
TEXT = "Michael Jordan joue au basket."
FOLDERS = [folder(COMMITTED, layer, 5, 10) for layer in range(N_LAYERS)]

Demo = tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return evaluate_lorsas.load_model()


@pytest.fixture(scope="module")
def lorsas() -> list[Lorsa]:
    return load_committed()


def test_every_attention_is_explained_by_features_few_of_which_are_silent(
    demo: Demo, lorsas: list[Lorsa]
) -> None:
    fits = evaluate_lorsas.fits(*demo, lorsas)
    assert len(fits) == N_LAYERS
    assert min(fit.explained for fit in fits) > 0.93
    assert min(fit.explained_without_bos for fit in fits) > 0.93
    assert max(fit.silent for fit in fits) < 1 / 3
    assert max(fit.active for fit in fits) <= 10


def test_a_lorsa_looks_where_the_models_own_heads_look(demo: Demo, lorsas: list[Lorsa]) -> None:
    model, tokenizer = demo
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for lorsa, seen, attention in zip(lorsas, record(model, tokens), attentions, strict=True):
        torch.testing.assert_close(lorsa.patterns(seen.inputs), attention, atol=1e-5, rtol=0)


def test_a_token_is_encoded_alike_whatever_comes_after_it(demo: Demo, lorsas: list[Lorsa]) -> None:
    model, tokenizer = demo
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    for lorsa, seen in zip(lorsas, record(model, tokens), strict=True):
        whole, part = lorsa.encode(seen.inputs), lorsa.encode(seen.inputs[:, :3])
        torch.testing.assert_close(whole[:, :3], part, atol=1e-5, rtol=1e-5)


def test_an_athletes_features_at_the_last_token_decide_the_sport(
    demo: Demo, lorsas: list[Lorsa]
) -> None:
    for language in ("fr", "es"):
        carriers = athlete_features.carriers(*demo, lorsas, language)
        assert [layer.prompts >= 30 for layer in carriers] == [False, True, True, True]
        turned = athlete_features.exchange(*demo, lorsas, language)
        assert turned.pairs == 786
        assert turned.by_carrying > 770
        assert turned.by_middle_layers > 600
        assert turned.by_others == 0
        assert turned.by_strongest[5] > 500


def test_the_files_are_in_llamascopiums_layout_without_the_mask() -> None:
    heads, gains = (4, 96, 24), (4, 24)
    for layer, directory in enumerate(FOLDERS):
        assert {file.name for file in directory.iterdir()} == {
            "config.json",
            "sae_weights.safetensors",
        }
        config = json.loads((directory / "config.json").read_text())
        assert config["hook_point_in"] == f"blocks.{layer}.ln1.hook_normalized"
        assert config["hook_point_out"] == f"blocks.{layer}.hook_attn_out"
        with safe_open(directory / "sae_weights.safetensors", framework="pt") as weights:
            shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        assert shapes == {
            **dict.fromkeys(("W_Q", "W_K"), heads),
            **dict.fromkeys(("b_Q", "b_K", "ln_q.w", "ln_k.w"), gains),
            **dict.fromkeys(("W_V", "W_O"), (480, 96)),
            "b_V": (480,),
            "b_D": (96,),
        }


def test_the_lorsas_are_smaller_than_three_megabytes() -> None:
    files = [file for file in COMMITTED.rglob("*") if file.is_file()]
    assert len(files) == 2 * N_LAYERS + 1  # and the examples of their features
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_training_repeats_itself_from_one_seed_and_its_files_read_back(
    demo: Demo, tmp_path: Path
) -> None:
    model, tokenizer = demo
    training = LorsaTraining(trained_features=192, kept_features=96, steps=20, documents=40)

    def trained(seed: int) -> Lorsa:
        records = record_documents(model, tokenizer, training.documents, training.seed)
        return train_lorsa(model, 1, records[1], replace(training, seed=seed))

    first, again, other = (trained(seed).state_dict() for seed in (1, 1, 2))
    read = load(trained(1).save(tmp_path, 1)).state_dict()
    for name, weights in first.items():
        assert weights.equal(again[name]), name
        assert weights.equal(read[name]), name
    assert not first["W_V"].equal(other["W_V"])
