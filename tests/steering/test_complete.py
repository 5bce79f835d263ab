"""Steering a complete replacement model: features of transcoders and of Lorsas."""

from typing import Any

import pytest
import torch

import steering
from attribution.complete import attribute
from errors import Cancelled, InvalidInput, NotFinite
from steering import Intervention, Options
from tests.support.complete_cases import (
    CASES,
    D_VOCAB,
    N_FEATURES,
    N_LAYERS,
    ONE_OF_EACH,
    PROMPTS,
    write_case,
)
from tests.support.complete_engine import complete_model, in_float32
from tests.support.complete_steering import activations_of, steered_logits
from tests.support.cuda_devices import DEVICES, cuda_device
from tests.support.steering_cases import assert_equal, probabilities

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def options(**changes: Any) -> Options:
    return Options(**{"n_tokens": 5, "top_k": D_VOCAB, **changes})


def generate(model, name, interventions=(), **changes):
    return steering.generate(model, PROMPTS[name], list(interventions), options(**changes))


def strongest(local, sublayer, *, at_last=False):
    """The strongest feature of a sublayer: (sublayer, position, index), and its activation."""
    mine = local.active_features[:, 0] == sublayer
    if at_last:
        mine &= local.active_features[:, 1] == len(local.tokens) - 1
    mine = mine.nonzero().flatten()
    at = mine[local.activation_values[mine].argmax()]
    return tuple(local.active_features[at].tolist()), float(local.activation_values[at])


def at_prompt(local):
    """Features of both kinds, of which one is ablated, one amplified, and one switched on."""
    (_, p, f), value = strongest(local, 2)
    (_, q, g), other = strongest(local, 5)
    (_, r, h), third = strongest(local, 4)
    return [
        Intervention(2, f, p, 0.0),
        Intervention(5, g, q, 3 * other),
        Intervention(4, h, r, 2 * third),
        Intervention(4, (h + 11) % N_FEATURES, r, 1.5),
        Intervention(2, (f + 1) % N_FEATURES, max(p - 1, 0), value),
    ]


ON_TOKENS = [
    Intervention(0, 3, None, 2.0),
    Intervention(4, 17, None, 0.0),
    Intervention(4, 40, None, 2.5),
    Intervention(7, 5, None, 3.0),
]
WHERE = {
    "at prompt positions": at_prompt,
    "on generated tokens": lambda local: ON_TOKENS,
    "on both": lambda local: [*at_prompt(local), *ON_TOKENS],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_activations_are_those_that_a_graph_shows(name, dtype, model_of, local_of):
    local = local_of(name, dtype)
    features = [tuple(feature) for feature in local.active_features.tolist()]

    read = steering.feature_activations(model_of(name, dtype), PROMPTS[name], features)

    assert len(features) > 100
    assert {sublayer for sublayer, *_ in features} == set(range(2 * N_LAYERS))
    assert 0 in {position for _, position, _ in features}
    assert read == pytest.approx(local.activation_values.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_activations_are_those_of_the_formulas(name, model_of):
    model, prompt = model_of(name), PROMPTS[name]
    inputs: dict[str, torch.Tensor] = {}
    names = [f"blocks.{n}.{ln}.hook_normalized" for n in range(N_LAYERS) for ln in ("ln1", "ln2")]

    def keep(x, hook):
        inputs[hook.name] = x[0].detach()

    with torch.no_grad(), model.language_model.hooks([(at, keep) for at in names]):
        model.language_model(torch.tensor([prompt]))
    for sublayer, at in enumerate(names):
        expected = activations_of(model.module(sublayer), inputs[at])
        features = [
            (sublayer, position, index) for position in (5, 0, 2) for index in range(N_FEATURES)
        ]
        read = steering.feature_activations(model, prompt, features)
        assert read == pytest.approx([float(expected[f[1:]]) for f in features], abs=1e-5)
        assert 0.0 in read
        assert max(read) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_next_token_logits_are_to_the_bit_those_that_a_graph_starts_from(
    name, dtype, model_of, local_of
):
    read = steering.next_token_logits(model_of(name, dtype), PROMPTS[name])
    assert torch.equal(read, local_of(name, dtype).logits)


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_generates_what_a_slow_steer_generates(name, where, frozen, model_of, local_of):
    model, interventions = model_of(name), WHERE[where](local_of(name))

    steered = generate(model, name, interventions, freeze_attention=frozen)

    n_prompt = len(PROMPTS[name])
    logits = steered_logits(
        model,
        steered.token_ids,
        n_prompt,
        interventions,
        # Without interventions in the prompt there are no other patterns to keep.
        freeze_attention=frozen and "generated" not in where,
    )
    assert len(logits) == 6
    torch.testing.assert_close(probabilities(steered), logits.softmax(-1), atol=1e-5, rtol=0)
    assert steered.token_ids[n_prompt:] == logits.argmax(-1)[:-1].tolist()
    changed = (probabilities(steered) - probabilities(generate(model, name))).abs().max()
    assert changed > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["relu-6", "jumprelu-9", "glu-6", "few-heads-9"])
def test_in_16_bits_it_is_near_the_same_weights_in_float32(name, dtype, model_of, local_of):
    model, interventions = model_of(name, dtype), at_prompt(local_of(name))
    steered = probabilities(generate(model, name, interventions, n_tokens=1))[0]
    logits = steered_logits(in_float32(model), PROMPTS[name], len(PROMPTS[name]), interventions)
    error = float((steered - logits[0].softmax(-1)).abs().sum())
    assert error < (0.1 if dtype == torch.bfloat16 else 0.015)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["relu-6", "jumprelu-9"])
def test_generated_tokens_in_16_bits_are_steered_as_in_float32(name, dtype, model_of):
    model = model_of(name, dtype)
    steered = generate(model, name, ON_TOKENS, n_tokens=3)
    logits = steered_logits(in_float32(model), steered.token_ids, len(PROMPTS[name]), ON_TOKENS)
    error = (probabilities(steered) - logits.softmax(-1)).abs().sum(1).max()
    assert error < (0.15 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_features_at_their_own_activations_change_nothing(name, dtype, model_of, local_of):
    model, local = model_of(name, dtype), local_of(name, dtype)
    own = [
        Intervention(sublayer, index, position, value)
        for (sublayer, position, index), value in zip(
            local.active_features.tolist()[::7], local.activation_values.tolist()[::7], strict=True
        )
    ]
    default, steered = steering.generate_both(model, PROMPTS[name], own, options(n_tokens=1))
    changed = (probabilities(default)[0] - probabilities(steered)[0]).abs().max()
    assert changed < {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}[dtype]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ["topk-9", "glu-6", "few-heads-9"])
def test_both_sides_are_what_each_is_alone(name, where, model_of, local_of):
    model, interventions = model_of(name), WHERE[where](local_of(name))
    default, steered = steering.generate_both(model, PROMPTS[name], interventions, options())
    assert_equal(default, generate(model, name), atol=1e-5)
    assert_equal(steered, generate(model, name, interventions), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_a_side_that_is_not_steered_in_the_prompt_starts_as_the_plain_pass_to_the_bit(
    frozen, dtype, model_of
):
    model, prompt = model_of("topk-9", dtype), PROMPTS["topk-9"]
    plain = torch.softmax(steering.next_token_logits(model, prompt), -1, dtype=torch.float32)
    asked = (model, prompt, ON_TOKENS, options(freeze_attention=frozen))
    for generation in (steering.generate(*asked), *steering.generate_both(*asked)):
        assert torch.equal(probabilities(generation)[0], plain)


def test_a_side_that_ends_early_leaves_the_others_as_they_are(model_of):
    model, prompt = model_of("relu-6"), PROMPTS["relu-6"]
    whole = steering.generate_both(model, prompt, ON_TOKENS, options())
    for side in range(2):
        stop = whole[side].token_ids[len(prompt) + 1]
        stopped = steering.generate_both(model, prompt, ON_TOKENS, options(stop_ids={stop}))
        for full, cut in zip(whole, stopped, strict=True):
            n = len(cut.token_ids) - len(prompt)
            assert cut.token_ids == full.token_ids[: len(prompt) + n]
            torch.testing.assert_close(
                probabilities(cut), probabilities(full)[: n + 1], atol=1e-5, rtol=0
            )


def test_a_seed_repeats_a_sampled_generation(model_of, local_of):
    model, interventions = model_of("glu-6"), WHERE["on both"](local_of("glu-6"))
    sampled = [
        generate(model, "glu-6", interventions, temperature=1.5, seed=seed).token_ids
        for seed in (3, 3, *range(6))
    ]
    assert sampled[0] == sampled[1]
    assert len(set(map(tuple, sampled))) > 1


# What edges say: with all else frozen, a change of a source moves each target by the edge from it.


def frozen_hooks(local, source):
    """Hooks that hold all still but the stream: norm scales, patterns, what others write."""
    lm, seen, inputs = local.model.language_model, {}, {}
    outputs = ("hook_attn_out", "hook_mlp_out")
    scales = ("ln1.hook_scale", "ln2.hook_scale")
    names = [f"blocks.{n}.{hook}" for n in range(N_LAYERS) for hook in (*outputs, *scales)] + [
        "ln_final.hook_scale"
    ]
    own = f"blocks.{source // 2}.{outputs[source % 2]}"

    def keep(x, hook):
        seen[hook.name] = x.clone()

    with torch.no_grad(), lm.hooks([(name, keep) for name in names]):
        lm(local.tokens)

    def held(x, hook):
        return seen[hook.name].expand_as(x)

    def record(x, hook):
        inputs[hook.name] = x[-1].clone()

    reads = [f"blocks.{n}.{ln}.hook_normalized" for n in range(N_LAYERS) for ln in ("ln1", "ln2")]
    hooks = [(name, held) for name in names if name != own] + [(name, record) for name in reads]
    return hooks, [(inputs, name) for name in reads]


def before_activation(local, sublayer, position, index, x):
    """A feature's pre-activation, its attention pattern held still."""
    module = local.model.module(sublayer)
    if sublayer % 2:
        return x[position] @ module.W_E[index] + module.b_E[index]
    pattern = local.attention[sublayer // 2].pattern[index // module.n_grouped, position]
    return pattern @ (x @ module.W_V[index] + module.b_V[index])


@pytest.mark.parametrize("at_last", [False, True], ids=["anywhere", "at the last token"])
@pytest.mark.parametrize("source", [0, 2, 3, 6])
@pytest.mark.parametrize("name", ["topk-9", "relu-6", "jumprelu-9", "glu-6", "no-rotary-9"])
def test_a_feature_that_is_set_moves_its_targets_by_what_the_edges_say(
    name, source, at_last, model_of, local_of
):
    model, local = model_of(name), local_of(name)
    graph = attribute(local)
    (_, position, index), value = strongest(local, source, at_last=at_last)
    column = graph.active_features.tolist().index([source, position, index])
    hooks, inputs = frozen_hooks(local, source)

    with model.language_model.hooks(hooks):
        moved = {}
        for factor in (1.0, 3.0):
            generated = generate(
                model, name, [Intervention(source, index, position, factor * value)], n_tokens=0
            )
            moved[factor] = [seen[at] for seen, at in inputs], probabilities(generated)[0].log()

    # The change is twice the activation, and an edge is what the activation gives.
    n_checked, largest = 0, float(graph.adjacency_matrix.abs().max())
    for row, (sublayer, p, f) in enumerate(graph.active_features.tolist()):
        if sublayer % 2 and local.gates is not None:
            continue  # a gate's read is a derivative
        before, after = (
            before_activation(local, sublayer, p, f, moved[factor][0][sublayer])
            for factor in (1.0, 3.0)
        )
        edge = float(graph.adjacency_matrix[row, column])
        assert float(after - before) / 2 == pytest.approx(edge, abs=1e-5 * largest)
        n_checked += abs(edge) > 1e-3
    assert n_checked > 4
    # Of logits edges tell differences: their mean and the softmax are free.
    change = (moved[3.0][1] - moved[1.0][1]) / 2
    tokens = [target.vocab_idx for target in graph.logit_targets]
    edges = graph.adjacency_matrix[-len(tokens) :, column]
    assert edges.any() == (position == len(PROMPTS[name]) - 1)
    torch.testing.assert_close(
        change[tokens] - change[tokens[0]], edges - edges[0], atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("source", [0, 5, 8, 9])
@pytest.mark.parametrize("name", ["topk-9", "relu-6", "glu-6"])
def test_a_small_change_moves_the_logits_as_the_derivative_of_the_model_says(
    name, source, model_of, local_of
):
    model, prompt = model_of(name), PROMPTS[name]
    (_, position, index), value = strongest(local_of(name), source, at_last=True)
    written = model.module(source).decoder.rows(torch.tensor([index]))[0]

    def logs(size):
        def add(output, hook):
            where = torch.zeros(output.shape[1], 1)
            where[position] = 1
            return output + where * written * size

        out = f"blocks.{source // 2}.{('hook_attn_out', 'hook_mlp_out')[source % 2]}"
        with model.language_model.hooks([(out, add)]):
            return model.language_model(torch.tensor([prompt]))[0, -1].log_softmax(-1)

    _, slope = torch.func.jvp(logs, (torch.zeros(()),), (torch.ones(()),))
    step = 0.02
    up, down = (
        probabilities(
            generate(
                model, name, [Intervention(source, index, position, value + change)], n_tokens=0
            )
        )[0].log()
        for change in (step, -step)
    )
    measured = (up - down) / (2 * step)
    assert slope.abs().max() > 1e-3
    assert (measured - slope).abs().max() < 0.01 * slope.abs().max() + 1e-4


@pytest.mark.parametrize("where", WHERE)
def test_decoders_on_the_disk_give_the_same(where, model_of, local_of):
    interventions = WHERE[where](local_of("topk-9"))
    eager, lazy = model_of("topk-9"), model_of("topk-9", lazy_decoder=True)
    assert_equal(generate(eager, "topk-9", interventions), generate(lazy, "topk-9", interventions))


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


@pytest.mark.parametrize("name", ["topk-9", "relu-6", "glu-6"])
def test_a_cuda_device_gives_the_cpu_s_numbers(name, cuda, model_of, local_of, tmp_path):
    interventions = WHERE["on both"](local_of(name))
    expected = steering.generate_both(model_of(name), PROMPTS[name], interventions, options())
    local = local_of(name)
    features = [tuple(feature) for feature in local.active_features.tolist()[::9]]

    on_device = complete_model(write_case(tmp_path, CASES[name]), device="cuda:0")
    got = steering.generate_both(on_device, PROMPTS[name], interventions, options())
    read = steering.feature_activations(on_device, PROMPTS[name], features)

    for ours, theirs in zip(got, expected, strict=True):
        assert_equal(ours, theirs, atol=1e-4)
    assert read == pytest.approx(local.activation_values.tolist()[::9], abs=1e-4)


def state(model):
    lm = model.language_model
    return {
        "hooks": {name: len(point.fwd_hooks) for name, point in lm.hook_dict.items()},
        "level": lm.context_level,
        "cfg": dict(vars(lm.cfg)),
        "parameters": {n: (p._version, p.requires_grad) for n, p in lm.named_parameters()},
        "modules": [
            {n: t._version for n, t in vars(module).items() if isinstance(t, torch.Tensor)}
            for module in (*model.lorsas, *model.transcoders)
        ],
    }


def fail_in_a_pass(model, interventions):
    passes = iter(range(100))

    def fail(*_):
        if next(passes) == 3:
            raise RuntimeError("broken")

    handle = model.language_model.blocks[3].mlp.register_forward_hook(fail)
    try:
        generate(model, "topk-9", interventions)
    finally:
        handle.remove()


def fail_in_a_check(model, interventions):
    calls = iter(range(100))

    def check():
        if next(calls) == 3:
            raise Cancelled("no longer wanted")

    generate(model, "topk-9", interventions, check=check)


def fail_in_numbers(model, interventions):
    generate(model, "topk-9", [*interventions, Intervention(4, 1, None, 1e39)])


@pytest.mark.parametrize(
    ("fail", "error"),
    [(fail_in_a_pass, RuntimeError), (fail_in_a_check, Cancelled), (fail_in_numbers, NotFinite)],
)
def test_after_a_failure_the_model_is_as_it_was(fail, error, model_of, local_of):
    model, interventions = model_of("topk-9"), WHERE["on both"](local_of("topk-9"))
    before, expected = state(model), generate(model, "topk-9", interventions)
    with pytest.raises(error):
        fail(model, interventions)
    assert state(model) == before
    assert_equal(generate(model, "topk-9", interventions), expected)


@pytest.mark.parametrize(
    ("intervention", "changed", "words"),
    [
        ((10, 0, 0, 1.0), {}, "layer is 10, the model has 10 layers (0 to 9)"),
        ((9, 64, 0, 1.0), {}, "index is 64, the model has 64 features in layer 9 (0 to 63)"),
        ((8, 64, 0, 1.0), {}, "index is 64, the model has 64 features in layer 8 (0 to 63)"),
        ((8, 0, 9, 1.0), {}, "position is 9, the prompt has 9 tokens (0 to 8)"),
        ((8, 0, 8, 1.0), {"n_tokens": 24}, "after 9 prompt tokens the model has room for 23"),
    ],
)
def test_what_the_model_has_not_is_refused(intervention, changed, words, model_of):
    with pytest.raises(InvalidInput) as raised:
        generate(model_of("topk-9"), "topk-9", [Intervention(*intervention)], **changed)
    assert words in str(raised.value)
