"""Experiments on complete replacement models: features of both kinds, set as one batch."""

import pytest
import torch

import steering
from attribution.complete import attribute
from errors import InvalidInput, NotFinite
from steering import Experiment, Feature, Frozen, Intervention, Options
from steering.complete import CompletePasses
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
from tests.support.complete_interventions import held_logits
from tests.support.complete_steering import steered_logits
from tests.support.cuda_devices import DEVICES, cuda_device
from tests.support.steering_cases import probabilities

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.03}
HELD = {
    "the first layers": range(2),
    "the last layers": range(2, N_LAYERS),
    "one layer": range(2, 3),
    "all layers": range(N_LAYERS),
}
FREE = {"free": Frozen(attention=False), "attention": Frozen()}
FROZEN = FREE | {name: Frozen(layers) for name, layers in HELD.items()}


def active(local):
    """The activation of each active feature: (sublayer, position, index)."""
    places = map(tuple, local.active_features.tolist())
    return dict(zip(places, local.activation_values.tolist(), strict=True))


def experiments_on(local) -> list[Experiment]:
    """Of features of both kinds, some are ablated, reversed, amplified or switched on."""
    strongest: dict[int, tuple[Feature, float]] = {}
    for feature, value in active(local).items():
        if value > strongest.get(feature[0], (None, 0.0))[1]:
            strongest[feature[0]] = feature, value
    first, second, third, last = (strongest[n] for n in (0, 3, 4, 9))
    layer, position, index = third[0]
    silent = (layer, position, (index + 11) % N_FEATURES)
    return [
        {feature: 0.0 for feature, _ in strongest.values()},
        {first[0]: -2 * first[1]},
        {second[0]: 3 * second[1], third[0]: 2 * third[1], silent: 1.5},
        {last[0]: 4 * last[1], first[0]: 0.0},
        {},
    ]


def features_of(experiments, local):
    set_ones = [feature for experiment in experiments for feature in experiment]
    return list(dict.fromkeys([*set_ones, *list(active(local))[::5]]))


def run(model, name, experiments, frozen, features=None):
    features = features or list(dict.fromkeys(f for e in experiments for f in e))
    return steering.intervene(model, PROMPTS[name], features, experiments, frozen)


def interventions(experiment):
    return [Intervention(n, index, at, value) for (n, at, index), value in experiment.items()]


@pytest.mark.parametrize("frozen", FREE)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_experiment_is_what_a_slow_steer_predicts(name, frozen, model_of, local_of):
    model, ids, experiments = model_of(name), PROMPTS[name], experiments_on(local_of(name))
    found = run(model, name, experiments, FREE[frozen]).logits
    for row, experiment in zip(found, [{}, *experiments], strict=True):
        logits = steered_logits(
            model, ids, len(ids), interventions(experiment), freeze_attention=frozen != "free"
        )[0]
        torch.testing.assert_close(row, logits, atol=2e-4, rtol=1e-4)
    assert all((row - found[0]).abs().max() > 1e-2 for row in found[1:-1])


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_layers_that_are_held_stay_as_they_are_but_for_what_is_set(name, held, model_of, local_of):
    model, ids, experiments = model_of(name), PROMPTS[name], experiments_on(local_of(name))
    found = run(model, name, experiments, FROZEN[held]).logits
    for row, experiment in zip(found, [{}, *experiments], strict=True):
        logits = held_logits(model, ids, interventions(experiment), HELD[held])
        torch.testing.assert_close(row, logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_with_all_layers_held_logits_and_features_move_by_the_edges_of_the_graph(
    name, model_of, local_of
):
    model, local = model_of(name), local_of(name)
    graph, values = attribute(local), active(local)
    places = list(values)
    # Some of the last position, which have edges to the logits, and some of others.
    last = [place for place in places if place[1] == len(PROMPTS[name]) - 1]
    sources = list(dict.fromkeys([*last[:: len(last) // 12], *places[:: len(places) // 12]]))
    experiments = [{source: 1.5 * values[source]} for source in sources]
    found = run(model, name, experiments, Frozen(range(N_LAYERS)), places)

    tokens = [target.vocab_idx for target in graph.logit_targets]
    moved = found.logits - found.logits[0]
    moved = (moved - moved.mean(1, keepdim=True))[1:, tokens]
    activations = found.activations
    still = (activations[1:] != 0) & (activations[:1] != 0)
    n_checked = 0
    for n, source in enumerate(sources):
        column = graph.adjacency_matrix[:, places.index(source)]
        torch.testing.assert_close(moved[n], 0.5 * column[-len(tokens) :], atol=2e-4, rtol=0)
        for target, place in enumerate(places):
            gated = place[0] % 2 == 1 and local.gates is not None  # its edge is a derivative
            if place == source or gated or not still[n, target]:
                continue
            change = float(activations[n + 1, target] - activations[0, target])
            edge = 0.5 * float(column[target])
            assert change == pytest.approx(edge, abs=2e-4), (source, place)
            n_checked += abs(edge) > 1e-3
    assert n_checked > 50


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_batch_gives_what_each_experiment_gives_alone(name, frozen, model_of, local_of):
    model, local = model_of(name), local_of(name)
    experiments = experiments_on(local)
    features = features_of(experiments, local)
    batch = run(model, name, experiments, FROZEN[frozen], features)
    for n, experiment in enumerate(experiments):
        alone = run(model, name, [experiment], FROZEN[frozen], features)
        for found, one in ((batch.logits, alone.logits), (batch.activations, alone.activations)):
            torch.testing.assert_close(found[[0, n + 1]], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", ["topk-9", "jumprelu-9", "glu-6", "few-heads-9"])
def test_features_at_their_own_activations_change_nothing(name, frozen, dtype, model_of, local_of):
    values = active(local_of(name, dtype))
    own = dict(list(values.items())[::7])
    found = run(model_of(name, dtype), name, [own, {}], FROZEN[frozen])
    for row in found.logits[1:].float():
        assert (row.softmax(-1) - found.logits[0].float().softmax(-1)).abs().sum() < CLOSE[dtype]
    torch.testing.assert_close(found.activations[1], found.activations[0], atol=1e-3, rtol=0.02)


@pytest.mark.parametrize("frozen", FREE)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_all_at_zero_is_what_a_steer_that_ablates_them_predicts(name, frozen, model_of, local_of):
    ablated = dict.fromkeys(list(active(local_of(name)))[::3], 0.0)
    model, frozen = model_of(name), FREE[frozen]
    found = run(model, name, [ablated], frozen).logits[1].softmax(-1)
    options = Options(n_tokens=0, top_k=D_VOCAB, freeze_attention=frozen.attention)
    steered = steering.generate(model, PROMPTS[name], interventions(ablated), options)
    torch.testing.assert_close(probabilities(steered)[0], found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["relu-6", "jumprelu-9", "glu-6", "few-heads-9"])
def test_in_16_bits_they_are_near_the_same_weights_in_float32(
    name, dtype, frozen, model_of, local_of
):
    model, experiments = model_of(name, dtype), experiments_on(local_of(name, dtype))
    found, truth = (
        run(each, name, experiments, FROZEN[frozen]).logits.float().softmax(-1)
        for each in (model, in_float32(model))
    )
    errors = (found - truth).abs().sum(1)
    assert errors.max() < (0.3 if dtype == torch.bfloat16 else 0.05)


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["topk-9", "relu-6", "glu-6", "few-heads-9"])
def test_a_cuda_device_gives_the_cpu_s_numbers(name, dtype, cuda, model_of, local_of, tmp_path):
    local, ids = local_of(name, dtype), PROMPTS[name]
    experiments = experiments_on(local)
    features = features_of(experiments, local)
    expected = {
        how: run(model_of(name, dtype), name, experiments, frozen, features)
        for how, frozen in FROZEN.items()
    }
    on_device = complete_model(write_case(tmp_path, CASES[name]), dtype, device="cuda:0")
    for how, frozen in FROZEN.items():
        found = steering.intervene(on_device, ids, features, experiments, frozen)
        assert found.logits.is_cuda
        assert not found.activations.is_cuda
        torch.testing.assert_close(
            found.logits.cpu().float(), expected[how].logits.float(), **close_to(dtype)
        )
        ours, theirs = found.activations, expected[how].activations
        differs = (ours != 0) != (theirs != 0)  # in 16 bits some are at their threshold
        assert differs.float().mean() <= (0 if dtype == torch.float32 else 0.01)
        torch.testing.assert_close(ours[~differs], theirs[~differs], **close_to(dtype))


def close_to(dtype):
    return {"atol": 2 * CLOSE[dtype], "rtol": CLOSE[dtype]}


def test_when_memory_runs_out_the_experiments_go_in_halves(model_of, local_of, monkeypatch):
    model, experiments = model_of("topk-9"), experiments_on(local_of("topk-9"))
    whole = run(model, "topk-9", experiments, Frozen())
    batches, real = [], CompletePasses.last_logits

    def limited(self, tokens, *args, **kwargs):
        batches.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, tokens, *args, **kwargs)

    monkeypatch.setattr(CompletePasses, "last_logits", limited)
    halved = run(model, "topk-9", experiments, Frozen())
    assert batches == [6, 3, 3, 2]
    torch.testing.assert_close(halved.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(halved.activations, whole.activations, atol=1e-4, rtol=1e-4)


def test_a_feature_whose_layer_is_not_held_changes_nothing(model_of, local_of):
    (feature, value), *_ = active(local_of("relu-6")).items()
    assert feature[0] == 0
    found = run(model_of("relu-6"), "relu-6", [{feature: 9 * value}], Frozen(range(1, 3)))
    torch.testing.assert_close(found.logits[1], found.logits[0], atol=1e-5, rtol=0)
    assert found.activations[1] == pytest.approx(value, abs=1e-5)


def test_what_the_model_does_not_have_and_what_overflows_is_named(model_of):
    model = model_of("relu-6")
    with pytest.raises(InvalidInput, match="constrained_layers ends at 5, the model has 5 layers"):
        run(model, "relu-6", [{(0, 1, 2): 1.0}], Frozen(range(1, 6)))
    with pytest.raises(NotFinite, match=r"experiments\[1\]"):
        run(model, "relu-6", [{(0, 1, 2): 1.0}, {(0, 1, 2): 1e39}], Frozen())


@pytest.mark.parametrize("frozen", FROZEN)
def test_a_stopped_run_leaves_the_model_as_it_came(frozen, model_of, local_of):
    model, [experiment, *_] = model_of("glu-6"), experiments_on(local_of("glu-6"))
    before = steering.next_token_logits(model, PROMPTS["glu-6"])

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        steering.intervene(
            model, PROMPTS["glu-6"], list(experiment), [experiment], FROZEN[frozen], check=stop
        )
    assert torch.equal(steering.next_token_logits(model, PROMPTS["glu-6"]), before)
