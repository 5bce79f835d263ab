"""The committed demo model does what demo/README.md says of it."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from demo import evaluate, language_steer
from demo.corpus import all_facts, documents
from demo.lorsas import COMMITTED
from demo.tokenizer import train_tokenizer
from demo.train_language_model import CONTEXT
from loading.loaded_model import LoadedModel
from loading.registry import DEMO

BOS, TURN_START, TURN_END = "<|bos|>", "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return evaluate.load_demo()


@pytest.fixture(scope="module")
def tokenizer(demo: LoadedModel) -> PreTrainedTokenizerBase:
    return demo.tokenizer


def test_every_fact_is_right(demo: LoadedModel) -> None:
    assert evaluate.wrong_facts(demo) == []


def test_every_chat_question_is_answered_and_the_answer_stops(demo: LoadedModel) -> None:
    assert evaluate.wrong_chats(demo) == []


def test_a_sentence_ends_the_generation_before_its_token_limit(demo: LoadedModel) -> None:
    ids = demo.tokenizer("Michael Jordan joue au").input_ids
    assert evaluate.continuations(demo, [ids], 10) == [" basket."]


def test_the_worker_computes_hugging_faces_logits(demo: LoadedModel) -> None:
    hf_model = AutoModelForCausalLM.from_pretrained(DEMO.model, dtype=torch.float32).eval()
    ids = demo.tokenizer("Serena Williams juega al tenis.", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(demo.model(ids), hf_model(ids).logits, atol=1e-4, rtol=0)


def test_transcoders_explain_the_variance_with_few_features(demo: LoadedModel) -> None:
    explained, active = evaluate.reconstruction(demo)
    assert len(explained) == demo.model.cfg.n_layers
    assert min(explained) > 0.97
    assert max(active) < 12


def test_graphs_are_mostly_features_and_little_error(demo: LoadedModel) -> None:
    scores = torch.tensor(evaluate.graph_scores(demo))
    replacement, completeness = scores.mean(0).tolist()
    assert replacement > 0.84
    assert completeness > 0.95


def test_three_features_each_way_turn_every_athletes_sport_to_spanish(demo: LoadedModel) -> None:
    french = [fact.prompt for fact, _ in language_steer.twins()]
    assert len(french) == 31
    assert language_steer.flips(demo, 3) == french


def test_one_feature_each_way_turns_most_athletes_sport_to_spanish(demo: LoadedModel) -> None:
    assert len(language_steer.flips(demo, 1)) >= 25


def test_a_steer_of_no_features_leaves_the_french_answer(demo: LoadedModel) -> None:
    for fact, twin in language_steer.twins():
        assert fact.answer != twin.answer
        assert language_steer.steered_answer(demo, fact.prompt, []) == fact.answer


def test_features_are_numbered_by_how_often_they_fire(demo: LoadedModel) -> None:
    fired = torch.zeros(demo.model.cfg.n_layers, demo.model.transcoders.d_transcoder)
    for fact in all_facts()[::10]:
        ids = torch.tensor(demo.tokenizer(fact.sentence).input_ids)
        _, activations = demo.model.get_activations(ids)
        fired += (activations > 0).sum(1)
    assert (fired[:, : demo.model.cfg.n_layers] > 0).all(), "the first features of each layer fire"
    quarters = fired.unflatten(1, (4, -1)).sum(2)
    assert (quarters.diff(dim=1) <= 0).all()


def test_transcoder_files_are_in_circuit_tracers_format() -> None:
    for layer in range(4):
        file = Path(DEMO.transcoder_set) / f"layer_{layer}.safetensors"
        with safe_open(file, framework="pt") as weights:
            shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        assert shapes == {
            "W_enc": (1024, 96),
            "W_dec": (1024, 96),
            "b_enc": (1024,),
            "b_dec": (96,),
            "activation_function.threshold": (1024,),
        }


def test_the_demo_without_its_lorsas_is_smaller_than_six_megabytes() -> None:
    directory = Path(DEMO.model).parent
    apart = {"__pycache__", COMMITTED.name}
    files = [file for file in directory.rglob("*") if not apart.intersection(file.parts)]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 6_000_000


def test_a_text_gets_one_bos_whose_id_is_not_zero(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Michael Jordan joue au").input_ids
    assert ids[0] == tokenizer.bos_token_id != 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert BOS not in tokenizer.tokenize("Michael Jordan joue au")


@pytest.mark.parametrize(
    "text", ["El día después", "  two  spaces\n\ttabs", "emoji 🏀 and שלום", "d'Andy", "1984?!"]
)
def test_any_text_survives_tokenisation(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_every_word_of_the_corpus_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for fact in all_facts():
        for text in (fact.sentence, f" {fact.sentence}"):
            words = text.replace(",", " ,").replace("'", " ' ").replace(".", " .").split()
            assert len(tokenizer.tokenize(text)) == len(words), text


def test_a_word_not_in_the_corpus_is_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer.tokenize(" Kathmandu")) > 1


def test_the_chat_template_renders_turns_and_opens_the_models(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Hola"},
            {"role": "assistant", "content": "Sí."},
            {"role": "user", "content": "Oui."},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == (
        "<|bos|><|im_start|>user\nHola<|im_end|>\n<|im_start|>assistant\nSí.<|im_end|>\n"
        "<|im_start|>user\nOui.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_role_markers_are_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {BOS, TURN_START, TURN_END} <= set(tokenizer.all_special_tokens)


def test_the_corpus_repeats_itself_from_one_seed() -> None:
    first, again = (list(itertools.islice(documents(random.Random(7)), 50)) for _ in range(2))
    assert first == again


def test_the_committed_tokenizer_is_the_one_the_corpus_gives(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert train_tokenizer(all_facts(), CONTEXT).get_vocab() == tokenizer.get_vocab()
