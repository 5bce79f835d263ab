"""The nnsight engine gives the numbers of the other engine and of circuit-tracer's own methods."""

from typing import Any

import circuit_tracer
import pytest
import torch

import attribution
import steering
from steering import Generation, Intervention
from tests.support.hugging_face_models import (
    BOTH_KINDS,
    FAMILIES,
    hugging_face_model,
    new_model,
    shared_model,
)
from tests.support.steering_cases import (
    INTERVENTIONS,
    PROMPT,
    ablate_and_amplify,
    active_features,
    assert_equal,
    assert_same_predictions,
    generate,
    library_form,
    options,
    probabilities,
)
from tests.support.tiny_models import D_MODEL, D_VOCAB, prompt_tokens

ENGINES: list[Any] = ["transformerlens", "nnsight"]
TOKENS = prompt_tokens()


def log_probabilities(generation: Generation) -> torch.Tensor:
    return probabilities(generation).log()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_hugging_face_s(family: str) -> None:
    model = hugging_face_model(FAMILIES[family][0])
    # Its default for Gemma-2 drops the cap on attention scores.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0, -1]
    ours = steering.next_token_logits(shared_model("nnsight", family), TOKENS.tolist())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


class TestAttribution:
    @pytest.mark.parametrize("n_features", [60, None], ids=["ranked", "all"])
    @pytest.mark.parametrize(("family", "dictionary", "skip"), BOTH_KINDS)
    def test_the_graph_is_that_of_the_other_engine(
        self, family: str, dictionary: str, skip: bool, n_features: int | None
    ) -> None:
        models = [shared_model(engine, family, dictionary, skip) for engine in ENGINES]
        assert [attribution.method_for(m) for m in models] == ["explicit sweep", "circuit-tracer"]
        swept, traced = (
            attribution.attribute(TOKENS, m, max_feature_nodes=n_features, batch_size=16)
            for m in models
        )
        assert torch.equal(traced.active_features, swept.active_features)
        assert torch.equal(traced.selected_features, swept.selected_features)
        assert torch.equal(traced.logit_token_ids, swept.logit_token_ids)
        for name in ("adjacency_matrix", "activation_values", "logit_probabilities"):
            torch.testing.assert_close(
                getattr(traced, name), getattr(swept, name), atol=2e-5, rtol=1e-4
            )

    @pytest.mark.parametrize("family", ["llama", "gpt-oss"])
    def test_it_is_the_library_s_graph(self, family: str) -> None:
        model = shared_model("nnsight", family)
        how: dict[str, Any] = {"max_feature_nodes": 60, "batch_size": 16}
        ours = attribution.attribute(TOKENS, model, **how)
        theirs = circuit_tracer.attribute(TOKENS, model, **how)
        assert torch.equal(ours.selected_features, theirs.selected_features)
        assert torch.equal(ours.adjacency_matrix, theirs.adjacency_matrix)

    @pytest.mark.parametrize("family", ["gemma3", "gemma3 with vision"])
    def test_gemma_3_s_token_edges_carry_the_embedding_scale_that_the_library_drops(
        self, family: str
    ) -> None:
        model = shared_model("nnsight", family)
        ours = attribution.attribute(TOKENS, model)
        theirs = circuit_tracer.attribute(TOKENS, model)
        n_logits, n_pos = len(ours.logit_targets), len(TOKENS)
        tokens = slice(-n_logits - n_pos, -n_logits)
        expected = theirs.adjacency_matrix.clone()
        expected[:, tokens] *= D_MODEL**0.5
        torch.testing.assert_close(ours.adjacency_matrix, expected)
        # Below the first MLP are only tokens: their edges add up to what a feature reads.
        first = ours.active_features[:, 0] == 0
        bias = model.transcoders._module[0].b_enc[ours.active_features[first, 2]]
        read = ours.adjacency_matrix[: len(first)][first][:, tokens].sum(1)
        torch.testing.assert_close(read, ours.activation_values[first] - bias, atol=1e-4, rtol=1e-4)


class TestSteering:
    @pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
    @pytest.mark.parametrize("where", ["on both", "at a silent position"])
    @pytest.mark.parametrize(("family", "dictionary", "skip"), BOTH_KINDS)
    def test_it_generates_what_the_other_engine_generates(
        self, family: str, dictionary: str, skip: bool, where: str, frozen: bool
    ) -> None:
        lens, hugging_face = (shared_model(e, family, dictionary, skip) for e in ENGINES)
        interventions = INTERVENTIONS[where](lens)
        expected = generate(lens, interventions, freeze_attention=frozen)
        ours = generate(hugging_face, interventions, freeze_attention=frozen)
        assert ours.token_ids == expected.token_ids
        torch.testing.assert_close(
            log_probabilities(ours), log_probabilities(expected), atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_prompt_pass_is_the_library_s_intervention(self, family: str, frozen: bool) -> None:
        model = shared_model("nnsight", family)
        interventions = ablate_and_amplify(model)
        logits = intervened(model, PROMPT, library_form(interventions), frozen)
        steered = generate(model, interventions, n_tokens=1, freeze_attention=frozen)
        assert_same_predictions(steered, logits[-1:])
        default = generate(model, n_tokens=1)
        assert (probabilities(steered)[0] - probabilities(default)[0]).abs().max() > 1e-4

    @pytest.mark.parametrize("family", ["gemma3", "gpt-oss"])
    def test_the_cache_gives_what_one_pass_over_the_steered_text_gives(self, family: str) -> None:
        model = shared_model("nnsight", family)
        interventions = INTERVENTIONS["on both"](model)
        generation = generate(model, interventions)
        ids = generation.token_ids
        generated = slice(len(PROMPT), len(ids))
        logits = intervened(model, ids, library_form(interventions, generated), frozen=False)
        assert_same_predictions(generation, logits[len(PROMPT) - 1 :])

    @pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
    @pytest.mark.parametrize("family", ["gemma3", "llama"])
    def test_both_sides_are_what_each_is_alone_and_one_goes_on_when_the_other_stops(
        self, family: str, frozen: bool
    ) -> None:
        model = shared_model("nnsight", family)
        interventions = INTERVENTIONS["on both"](model)
        how: dict[str, Any] = {"temperature": 2.0, "seed": 1, "freeze_attention": frozen}
        default, steered = generate(model, **how), generate(model, interventions, **how)
        stop = next(i for i in steered.token_ids[len(PROMPT) :] if i not in default.token_ids)
        stopped = generate(model, interventions, stop_ids=[stop], **how)
        both = steering.generate_both(model, PROMPT, interventions, options(stop_ids=[stop], **how))
        assert_equal(both[0], default, atol=1e-5)
        assert_equal(both[1], stopped, atol=1e-5)
        assert len(stopped.token_ids) < len(steered.token_ids)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_activations_are_the_library_s(self, family: str) -> None:
        model = shared_model("nnsight", family)
        expected = active_features(model) | {(1, 0, 3): 0.0}
        ours = steering.feature_activations(model, PROMPT, list(expected))
        torch.testing.assert_close(
            torch.tensor(ours), torch.tensor(list(expected.values())), atol=1e-5, rtol=1e-5
        )


def intervened(model: Any, ids: list[int], interventions: list[Any], frozen: bool) -> torch.Tensor:
    """Logits (n_positions, d_vocab) of circuit-tracer's `feature_intervention`."""
    words = " ".join(f"w{i}" for i in ids[1:])
    assert model.tokenizer(words).input_ids == ids
    logits, _ = model.feature_intervention(words, interventions, freeze_attention=frozen)
    return logits[0]


def test_a_bfloat16_model_is_near_the_exact_one_and_keeps_its_rotary_frequencies() -> None:
    exact = shared_model("nnsight", "llama")
    model = new_model("nnsight", "llama", dtype=torch.bfloat16)
    assert model.cfg.dtype == model._module.lm_head.weight.dtype == torch.bfloat16
    assert model._module.model.rotary_emb.inv_freq.dtype == torch.float32
    interventions = [Intervention(0, 3, 2, 3.0), Intervention(2, 40, None, 5.0)]
    rounded, expected = (generate(m, interventions, n_tokens=2) for m in (model, exact))
    torch.testing.assert_close(
        probabilities(rounded)[0], probabilities(expected)[0], atol=0.05, rtol=0
    )
    graph = attribution.attribute(TOKENS, model, max_feature_nodes=20)
    assert graph.adjacency_matrix.isfinite().all()
    assert graph.vocab_size == D_VOCAB
