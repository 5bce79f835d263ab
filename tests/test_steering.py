"""Steering against circuit-tracer's own interventions, run in the same test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_relu_transcoder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

import steering
from errors import Cancelled, DeadlineExceeded, InvalidInput
from steering import Generation, Intervention

N_LAYERS, D_MODEL, N_FEATURES, D_VOCAB, N_CTX = 3, 32, 48, 40, 24
CPU = torch.device("cpu")
PROMPT = [0, 7, 23, 11, 5, 30]  # the BOS token's id is 0

GPT2_LIKE: dict[str, Any] = {"act_fn": "gelu_new", "normalization_type": "LN"}
GEMMA2_LIKE: dict[str, Any] = {
    "act_fn": "gelu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "final_rms": True,
    "use_normalization_before_and_after": True,
    "n_key_value_heads": 1,
    "positional_embedding_type": "rotary",
    "rotary_dim": 16,
    "attn_scores_soft_cap": 50.0,
    "output_logits_soft_cap": 30.0,
}
QWEN3_LIKE: dict[str, Any] = {
    **{key: GEMMA2_LIKE[key] for key in ("gated_mlp", "normalization_type", "final_rms")},
    "act_fn": "silu",
    "use_qk_norm": True,
    "n_key_value_heads": 1,
    "positional_embedding_type": "rotary",
    "rotary_dim": 16,
}


def transcoder_set(activation: str, *, skip: bool = False) -> TranscoderSet:
    activations: dict[str, Callable[[], Any]] = {
        "relu": lambda: torch.nn.functional.relu,
        "jump_relu": lambda: JumpReLU(0.2 + torch.rand(N_FEATURES), 0.1),
        "topk": lambda: TopK(5),
    }
    layers = {}
    for layer in range(N_LAYERS):
        layers[layer] = SingleLayerTranscoder(
            D_MODEL, N_FEATURES, activations[activation](), layer, skip, device=CPU,
            dtype=torch.float32,
        )  # fmt: skip
    for transcoder in layers.values():
        randomise(transcoder)
    return TranscoderSet(layers, "ln2.hook_normalized", "hook_mlp_out", scan="tiny")


def cross_layer_transcoder(activation: str, *, skip: bool = False) -> CrossLayerTranscoder:
    transcoder = CrossLayerTranscoder(
        N_LAYERS, N_FEATURES, D_MODEL, activation, skip, lazy_decoder=False, device=CPU,
        feature_input_hook="ln2.hook_normalized", scan="tiny", dtype=torch.float32,
    )  # fmt: skip
    randomise(transcoder)
    if activation == "jump_relu":
        torch.nn.init.uniform_(transcoder.activation_function.threshold, 0.2, 1.2)
    return transcoder


def randomise(transcoder: torch.nn.Module) -> None:
    for name, parameter in transcoder.named_parameters():
        if "threshold" not in name:
            torch.nn.init.normal_(parameter, std=0.1 if name.startswith("b_") else D_MODEL**-0.5)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w39 with their numbers for ids; BOS, which it adds, is also EOS and pad."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="w0 $A", special_tokens=[("w0", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w0", padding_side="right"
    )


def build(
    architecture: dict[str, Any], transcoders: Any, dtype: torch.dtype = torch.float32
) -> Any:
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=D_MODEL, n_ctx=N_CTX, d_head=16, n_heads=2, d_mlp=64,
        d_vocab=D_VOCAB, model_name="tiny", device="cpu", init_weights=True, dtype=dtype, seed=0,
        initializer_range=0.3, **architecture,
    )  # fmt: skip
    model = TransformerLensReplacementModel.from_config(cfg, transcoders)
    model.tokenizer = tokenizer()
    cfg.tokenizer_prepends_bos = True
    return model


KINDS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "gemma2-jumprelu": (GEMMA2_LIKE, lambda: transcoder_set("jump_relu")),
    "gpt2-relu": (GPT2_LIKE, lambda: transcoder_set("relu")),
    "gpt2-relu-skip": (GPT2_LIKE, lambda: transcoder_set("relu", skip=True)),
    "qwen3-topk": (QWEN3_LIKE, lambda: transcoder_set("topk")),
    "qwen3-clt-relu": (QWEN3_LIKE, lambda: cross_layer_transcoder("relu")),
    "gemma2-clt-jumprelu-skip": (
        GEMMA2_LIKE,
        lambda: cross_layer_transcoder("jump_relu", skip=True),
    ),
}
_models: dict[str, Any] = {}


def get(kind: str) -> Any:
    if kind not in _models:
        architecture, transcoders = KINDS[kind]
        torch.manual_seed(1)
        _models[kind] = build(architecture, transcoders())
    return _models[kind]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return get(request.param)


@pytest.fixture
def gemma() -> Any:
    return get("gemma2-jumprelu")


def generate(model: Any, interventions: list[Intervention] | None = None, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "n_tokens": 6, "top_k": D_VOCAB, "temperature": 0, "freq_penalty": 0, "seed": None,
        "freeze_attention": False, **changes,
    }  # fmt: skip
    prompt = options.pop("prompt", PROMPT)
    return steering.generate(model, prompt, interventions or [], **options)


def probabilities(generation: Generation) -> torch.Tensor:
    """(n_generated + 1, d_vocab), from predictions of the whole vocabulary."""
    return torch.zeros(generation.top_ids.shape).scatter(
        1, generation.top_ids, generation.top_probs
    )


def active_features(model: Any) -> dict[tuple[int, int, int], float]:
    """The strongest feature of each layer, (layer, position, index), with its activation."""
    _, activations = model.get_activations(torch.tensor(PROMPT))
    strongest = {}
    for layer in range(N_LAYERS):
        value, index = activations[layer, 2 + layer].max(dim=0)
        assert value > 0
        strongest[layer, 2 + layer, index.item()] = value.item()
    return strongest


def ablate_and_amplify(model: Any) -> list[Intervention]:
    return [
        Intervention(layer, index, position, 0.0 if layer == 1 else 4 * value)
        for (layer, position, index), value in active_features(model).items()
    ]


OPEN_ENDED = [Intervention(0, 3, None, 3.0), Intervention(2, 40, None, 5.0)]
INTERVENTIONS: dict[str, Callable[[Any], list[Intervention]]] = {
    "at prompt positions": ablate_and_amplify,
    "on generated tokens": lambda model: OPEN_ENDED,
    "on both": lambda model: [*ablate_and_amplify(model), *OPEN_ENDED],
    "at a silent position": lambda model: [Intervention(1, 9, 0, 2.0)],
}


def library_form(interventions: list[Intervention]) -> list[tuple[int, Any, int, float]]:
    after_prompt = slice(len(PROMPT), None)
    return [
        (i.layer, after_prompt if i.position is None else i.position, i.index, i.value)
        for i in interventions
    ]


def assert_same_predictions(generation: Generation, logits: torch.Tensor) -> None:
    """`logits` are (n_steps, d_vocab), the first ones of as many steps."""
    expected = logits.float().softmax(dim=-1)
    torch.testing.assert_close(
        probabilities(generation)[: len(expected)], expected, atol=1e-5, rtol=0
    )


def state(model: Any) -> dict[str, Any]:
    """What a job must leave as it found it: hooks, configuration, parameters."""
    return {
        "hooks": {
            name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
            for name, point in model.hook_dict.items()
        },
        "level": model.context_level,
        "cfg": dict(vars(model.cfg)),
        "padding": model.tokenizer.padding_side,
        "parameters": {
            name: (parameter._version, parameter.requires_grad, parameter.is_inference())
            for name, parameter in model.named_parameters()
        },
    }


# Exactness


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("where", INTERVENTIONS)
def test_generates_what_the_library_generates(model: Any, where: str, frozen: bool) -> None:
    interventions = INTERVENTIONS[where](model)
    words = " ".join(f"w{i}" for i in PROMPT[1:])
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    text, logits, _ = model.feature_intervention_generate(
        words, library_form(interventions), freeze_attention=frozen, **options
    )
    ours = generate(model, interventions, freeze_attention=frozen)
    assert text.split() == [f"w{i}" for i in ours.token_ids if i != 0]
    assert_same_predictions(ours, logits)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_prompt_pass_equals_feature_intervention(model: Any, frozen: bool) -> None:
    interventions = ablate_and_amplify(model)
    logits, _ = model.feature_intervention(
        torch.tensor(PROMPT), library_form(interventions), freeze_attention=frozen
    )
    steered = generate(model, interventions, n_tokens=1, freeze_attention=frozen)
    assert_same_predictions(steered, logits[0, -1:])
    default = generate(model, n_tokens=1)
    assert (probabilities(steered)[0] - probabilities(default)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("where", INTERVENTIONS)
def test_the_cache_equals_one_pass_over_the_whole_steered_text(model: Any, where: str) -> None:
    interventions = INTERVENTIONS[where](model)
    assert_equals_one_pass(model, interventions, generate(model, interventions))


def assert_equals_one_pass(
    model: Any, interventions: list[Intervention], generation: Generation
) -> None:
    ids = generation.token_ids
    generated = range(len(PROMPT), len(ids))
    spelled_out = [
        (i.layer, position, i.index, i.value)
        for i in interventions
        for position in (generated if i.position is None else [i.position])
    ]
    logits, _ = model.feature_intervention(torch.tensor(ids), spelled_out, freeze_attention=False)
    assert_same_predictions(generation, logits[0, len(PROMPT) - 1 :])
    assert len(generation.top_ids) == len(generated) + 1


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["gemma2-jumprelu", "gemma2-clt-jumprelu-skip", "qwen3-topk"]),
    interventions=st.lists(
        st.builds(
            Intervention,
            layer=st.integers(0, N_LAYERS - 1),
            index=st.integers(0, N_FEATURES - 1),
            position=st.none() | st.integers(1, len(PROMPT) - 1),
            value=st.floats(-10, 10, width=32),
        ),
        max_size=8,
        unique_by=lambda i: (i.layer, i.index, i.position),
    ),
)
def test_any_interventions_equal_one_pass(kind: str, interventions: list[Intervention]) -> None:
    model = get(kind)
    assert_equals_one_pass(model, interventions, generate(model, interventions, n_tokens=3))


def test_the_last_intervention_on_a_feature_wins(gemma: Any) -> None:
    first, last = Intervention(1, 9, 3, 8.0), Intervention(1, 9, 3, -2.0)
    both, alone = generate(gemma, [first, last]), generate(gemma, [last])
    assert torch.equal(both.top_probs, alone.top_probs)


def test_setting_features_to_their_own_activations_changes_nothing(model: Any) -> None:
    features = list(active_features(model))
    values = steering.feature_activations(model, PROMPT, features)
    unchanged = [
        Intervention(layer, index, position, value)
        for (layer, position, index), value in zip(features, values, strict=True)
    ]
    steered, default = generate(model, unchanged), generate(model)
    assert steered.token_ids == default.token_ids
    torch.testing.assert_close(probabilities(steered), probabilities(default), atol=1e-6, rtol=0)


def test_activations_are_those_of_the_library(model: Any) -> None:
    _, activations = model.get_activations(torch.tensor(PROMPT))
    features = [(2, 5, 4), (0, 1, 3), (2, 5, 4), (1, 0, 7), (2, 1, 4), (1, 3, 47)]
    features += [tuple(f) for f in activations.nonzero()[::7].tolist()]
    read = steering.feature_activations(model, PROMPT, features)
    expected = [activations[feature].item() for feature in features]
    assert read == pytest.approx(expected, abs=1e-5)
    assert sum(value > 0 for value in read) > 10


def test_no_features_have_no_activations(gemma: Any) -> None:
    assert steering.feature_activations(gemma, PROMPT, []) == []


# The default side


def test_without_interventions_it_is_the_models_own_generation(model: Any) -> None:
    ours = generate(model)
    theirs = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False
    )
    assert ours.token_ids == theirs[0].tolist()
    assert_same_predictions(ours, model(theirs)[0, len(PROMPT) - 1 :].detach())


def test_without_interventions_frozen_attention_is_the_same_bit_for_bit(model: Any) -> None:
    default, frozen = generate(model), generate(model, freeze_attention=True)
    assert default.token_ids == frozen.token_ids
    assert torch.equal(default.top_probs, frozen.top_probs)


def test_pad_and_bos_tokens_inside_the_text_are_attended_to(gemma: Any) -> None:
    prompt = [0, 7, 0, 11, 0, 0]
    ours = generate(gemma, prompt=prompt)
    logits = gemma(torch.tensor([ours.token_ids])).detach()
    assert_same_predictions(ours, logits[0, len(prompt) - 1 :])


# What is asked for and what comes


@pytest.mark.parametrize("steered", [False, True])
def test_a_stop_token_ends_the_generation_and_has_predictions_too(
    gemma: Any, steered: bool
) -> None:
    interventions = ablate_and_amplify(gemma) if steered else []
    whole = generate(gemma, interventions)
    stop = whole.token_ids[len(PROMPT) + 2]
    n_generated = whole.token_ids[len(PROMPT) :].index(stop) + 1
    stopped = generate(gemma, interventions, stop_ids={stop, 39})
    assert stopped.token_ids == whole.token_ids[: len(PROMPT) + n_generated]
    assert torch.equal(stopped.top_probs, whole.top_probs[: n_generated + 1])


@pytest.mark.parametrize("top_k", [0, 1, 5, D_VOCAB])
def test_each_step_has_top_k_predictions_likeliest_first(gemma: Any, top_k: int) -> None:
    generation = generate(gemma, top_k=top_k)
    assert generation.top_ids.shape == generation.top_probs.shape == (7, top_k)
    assert (generation.top_probs.diff(dim=1) <= 0).all()
    if top_k:
        assert generation.top_ids[:-1, 0].tolist() == generation.token_ids[len(PROMPT) :]
    if top_k == D_VOCAB:
        torch.testing.assert_close(generation.top_probs.sum(dim=1), torch.ones(7))


def test_the_model_runs_once_for_the_prompt_and_once_for_each_token(
    gemma: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_prompt = ablate_and_amplify(gemma)
    lengths = []
    forward = gemma.forward

    def counting(tokens: torch.Tensor, **options: Any) -> Any:
        lengths.append(tokens.shape[1])
        return forward(tokens, **options)

    monkeypatch.setattr(gemma, "forward", counting)
    once = [len(PROMPT), 1, 1, 1, 1]
    generate(gemma, [*at_prompt, *OPEN_ENDED], n_tokens=4)
    assert lengths == once
    lengths.clear()
    # Attention that nothing changes need not be frozen.
    generate(gemma, OPEN_ENDED, n_tokens=4, freeze_attention=True)
    assert lengths == once


def test_progress_is_told_after_each_token(gemma: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(gemma, n_tokens=3, on_token=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_context_can_be_filled_to_its_last_token(gemma: Any) -> None:
    assert len(generate(gemma, n_tokens=N_CTX - len(PROMPT)).token_ids) == N_CTX


@pytest.mark.parametrize(
    ("intervention", "changes", "sentence"),
    [
        (None, {"n_tokens": 19}, "n_tokens is 19, after 6 prompt tokens the model has room for 18"),
        (None, {"top_k": 41}, "top_k is 41, it must be from 0 to 40"),
        (Intervention(3, 0, 1, 0.0), {}, "layer of intervention 0 is 3, it must be from 0 to 2"),
        (Intervention(0, 48, 1, 0.0), {}, "index of intervention 0 is 48"),
        (Intervention(0, 0, 6, 0.0), {}, "position of intervention 0 is 6"),
        (Intervention(0, 0, -1, 0.0), {}, "position of intervention 0 is -1"),
        (Intervention(0, 0, 1, 1e39), {}, "out of the number range"),
        (Intervention(2, 0, None, float("nan")), {}, "out of the number range"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    gemma: Any, intervention: Intervention | None, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        generate(gemma, [intervention] if intervention else [], **changes)


# Sampling


@pytest.mark.parametrize("steered", [False, True])
def test_a_seed_repeats_a_sampled_generation_exactly(gemma: Any, steered: bool) -> None:
    interventions = ablate_and_amplify(gemma) if steered else []

    def sampled(seed: int | None) -> list[int]:
        torch.rand(3)  # the global state moves on between two jobs
        return generate(
            gemma, interventions, n_tokens=12, temperature=1.5, freq_penalty=0.3, seed=seed
        ).token_ids

    assert sampled(17) == sampled(17)
    assert len({tuple(sampled(seed)) for seed in range(5)}) == 5
    assert sampled(None) != sampled(None)
    assert sampled(-5) == sampled(-5)


def test_sampling_leaves_the_global_random_state_alone(gemma: Any) -> None:
    before = torch.get_rng_state()
    generate(gemma, temperature=1.0, seed=3)
    generate(gemma, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "freq_penalty"), [(1.0, 0.0), (0.7, 2.0), (2.0, -1.0)])
def test_a_seed_draws_what_the_library_draws(
    gemma: Any, temperature: float, freq_penalty: float
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "freq_penalty": freq_penalty}
    torch.manual_seed(11)
    theirs = gemma.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, stop_at_eos=False, verbose=False, **options
    )
    ours = generate(gemma, n_tokens=12, seed=11, **options)
    assert ours.token_ids == theirs[0].tolist()


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-320])
def test_a_temperature_close_to_zero_is_greedy(gemma: Any, temperature: float) -> None:
    cold = generate(gemma, temperature=temperature, seed=1)
    assert cold.token_ids == generate(gemma).token_ids


# What is read of the dictionaries


@contextmanager
def recorded_decoder_reads(transcoders: Any) -> Iterator[list[tuple[int, list[int]]]]:
    """The (layer, features) that `_get_decoder_vectors` is asked for."""
    reads: list[tuple[int, list[int]]] = []
    read = transcoders._get_decoder_vectors

    def recording(layer: int, features: torch.Tensor) -> torch.Tensor:
        reads.append((layer, sorted(features.tolist())))
        return read(layer, features)

    transcoders._get_decoder_vectors = recording
    try:
        yield reads
    finally:
        del transcoders._get_decoder_vectors


def test_only_the_needed_decoder_rows_are_read_and_once(model: Any) -> None:
    interventions = [
        Intervention(1, 9, 2, 1.0),
        Intervention(1, 9, 3, 1.0),
        Intervention(1, 30, 3, 0.0),
        Intervention(2, 4, None, 2.0),
    ]
    with recorded_decoder_reads(model.transcoders) as reads:
        generate(model, interventions, n_tokens=5)
    assert reads == [(1, [9, 30]), (2, [4])]


def test_lazy_transcoders_give_the_same_generation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    eager = transcoder_set("jump_relu")
    eager.to_safetensors(str(tmp_path))
    layers = {
        layer: load_relu_transcoder(str(tmp_path / f"layer_{layer}.safetensors"), layer, CPU)
        for layer in range(N_LAYERS)
    }
    assert all(t.lazy_encoder and t.lazy_decoder for t in layers.values())
    lazy = TranscoderSet(layers, "ln2.hook_normalized", "hook_mlp_out")
    assert_same_steering(build(GEMMA2_LIKE, eager), build(GEMMA2_LIKE, lazy))


def test_a_lazy_topk_transcoder_gives_the_same_generation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    eager = transcoder_set("topk")
    eager.to_safetensors(str(tmp_path))
    layers = {}
    for layer in range(N_LAYERS):
        path = str(tmp_path / f"layer_{layer}.safetensors")
        layers[layer] = load_relu_transcoder(path, layer, CPU)
        layers[layer].activation_function = TopK(5)
    lazy = TranscoderSet(layers, "ln2.hook_normalized", "hook_mlp_out")
    assert_same_steering(build(QWEN3_LIKE, eager), build(QWEN3_LIKE, lazy))


def test_a_lazy_cross_layer_transcoder_gives_the_same_generation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    eager = cross_layer_transcoder("jump_relu")
    eager.to_safetensors(str(tmp_path))
    lazy = load_clt(
        str(tmp_path), "ln2.hook_normalized", device=CPU, dtype=torch.float32, lazy_encoder=True
    )
    assert lazy.lazy_decoder
    assert_same_steering(build(GEMMA2_LIKE, eager), build(GEMMA2_LIKE, lazy))


def assert_same_steering(eager: Any, lazy: Any) -> None:
    interventions = [*ablate_and_amplify(eager), *OPEN_ENDED]
    features = list(active_features(eager))
    of_eager, of_lazy = (
        steering.feature_activations(model, PROMPT, features) for model in (eager, lazy)
    )
    assert of_eager == pytest.approx(of_lazy, abs=1e-6)
    by_eager, by_lazy = generate(eager, interventions), generate(lazy, interventions)
    assert by_eager.token_ids == by_lazy.token_ids
    torch.testing.assert_close(probabilities(by_eager), probabilities(by_lazy), atol=1e-6, rtol=0)


def test_a_bfloat16_model_is_steered_in_its_own_precision() -> None:
    torch.manual_seed(1)
    model = build(GEMMA2_LIKE, transcoder_set("jump_relu"), torch.bfloat16)
    interventions = ablate_and_amplify(model)
    logits, _ = model.feature_intervention(
        torch.tensor(PROMPT), library_form(interventions), freeze_attention=True
    )
    steered = generate(model, interventions, freeze_attention=True)
    expected = logits[0, -1:].float().softmax(dim=-1)
    torch.testing.assert_close(probabilities(steered)[:1], expected, atol=2e-2, rtol=0)


# The model as it came


class Broken(Exception):
    pass


def fail_in_hook(model: Any, interventions: list[Intervention]) -> None:
    """The last layer fails in the pass of the third token, with deltas pending."""
    passes = iter(range(100))

    def fail(*_: Any) -> None:
        if next(passes) == 3:
            raise Broken

    handle = model.blocks[2].ln2.register_forward_hook(fail)
    try:
        generate(model, interventions)
    finally:
        handle.remove()


def fail_in_frozen_pass(model: Any, interventions: list[Intervention]) -> None:
    def fail(*_: Any) -> None:
        raise Broken

    handle = model.blocks[1].attn.register_forward_hook(fail)
    try:
        generate(model, interventions, freeze_attention=True)
    finally:
        handle.remove()


def fail_in_activations(model: Any, interventions: list[Intervention]) -> None:
    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        steering.feature_activations(model, PROMPT, [(0, 1, 3), (2, 4, 5)])
    finally:
        handle.remove()


def fail_in_sampling(model: Any, interventions: list[Intervention]) -> None:
    generate(model, interventions, temperature=1.0, freq_penalty=float("inf"))


def fail_in_should_stop(model: Any, interventions: list[Intervention]) -> None:
    polls = iter([False, False, True])
    generate(model, interventions, should_stop=lambda: next(polls))


def fail_with_the_pollers_error(model: Any, interventions: list[Intervention]) -> None:
    def late() -> bool:
        raise DeadlineExceeded("too late")

    generate(model, interventions, should_stop=late)


def fail_in_on_token(model: Any, interventions: list[Intervention]) -> None:
    def fail(done: int, total: int) -> None:
        raise Broken

    generate(model, interventions, on_token=fail)


def fail_in_numbers(model: Any, interventions: list[Intervention]) -> None:
    generate(model, [*interventions, Intervention(0, 1, None, 1e39)])


FAILURES: list[tuple[Callable[[Any, list[Intervention]], None], type[Exception]]] = [
    (fail_in_hook, Broken),
    (fail_in_frozen_pass, Broken),
    (fail_in_activations, ZeroDivisionError),
    (fail_in_sampling, RuntimeError),
    (fail_in_should_stop, Cancelled),
    (fail_with_the_pollers_error, DeadlineExceeded),
    (fail_in_on_token, Broken),
    (fail_in_numbers, InvalidInput),
]


@pytest.mark.parametrize(("fail", "error"), FAILURES)
@pytest.mark.parametrize("kind", ["gemma2-jumprelu", "gemma2-clt-jumprelu-skip"])
def test_after_a_failure_the_next_generation_is_that_of_a_fresh_model(
    kind: str, fail: Callable[[Any, list[Intervention]], None], error: type[Exception]
) -> None:
    model = get(kind)
    interventions = [*ablate_and_amplify(model), *OPEN_ENDED]
    before = state(model)
    fresh_default, fresh_steered = generate(model), generate(model, interventions)
    with pytest.raises(error):
        fail(model, interventions)
    assert state(model) == before
    for fresh, again in (
        (fresh_default, generate(model)),
        (fresh_steered, generate(model, interventions)),
    ):
        assert again.token_ids == fresh.token_ids
        assert torch.equal(again.top_probs, fresh.top_probs)


def test_hooks_of_others_stay(gemma: Any) -> None:
    calls: list[int] = []
    gemma.add_hook("blocks.0.hook_resid_pre", lambda acts, hook: calls.append(1))
    try:
        generate(gemma, ablate_and_amplify(gemma), n_tokens=1, freeze_attention=True)
        n_calls = len(calls)
        gemma(torch.tensor([PROMPT]))
        assert len(calls) == n_calls + 1
    finally:
        gemma.reset_hooks()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_autograd_mode_makes_no_difference(gemma: Any, mode: Any) -> None:
    interventions = ablate_and_amplify(gemma)
    before, plain = state(gemma), generate(gemma, interventions)
    with mode():
        inside = generate(gemma, interventions)
    assert torch.equal(inside.top_probs, plain.top_probs)
    assert not plain.top_probs.is_inference()
    assert state(gemma) == before
    # Attribution needs gradients through the same model afterwards.
    gemma(torch.tensor([PROMPT])).sum().backward()
