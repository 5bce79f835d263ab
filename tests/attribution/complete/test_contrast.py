"""A contrast on a complete replacement model, against float64 autograd and its graphs."""

import copy

import pytest
import torch

from attribution.complete import attribute, freeze
from attribution.complete.modules import CompleteModel
from attribution.contrast import contrast
from attribution.target_kinds import LogitDifference
from errors import NotFinite
from tests.support.complete_cases import CASES, N_LAYERS, ONE_OF_EACH, PROMPTS, write_case
from tests.support.complete_engine import complete_model, in_float32, models_of_cases
from tests.support.complete_steering import activations_of
from tests.support.cuda_devices import DEVICES, cuda_device

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    return models_of_cases(tmp_path_factory.mktemp("cases"))


def other_of(model, name):
    """A prompt after which the model predicts something else."""
    prompt = PROMPTS[name]
    for shift in range(1, 30):
        other = [3 + (token + shift) % 40 for token in prompt]
        if contrast(model, prompt, other, 0, 0).features:
            return other
    raise AssertionError("no two prompts have other predictions")


def numbers(features):
    return {(f.layer, f.kind, f.index): f for f in features}


def slopes_by_autograd(model: CompleteModel, prompt, found):
    """The gradient of the difference at what each sublayer adds, (2 n_layers, n_pos, d_model)."""
    lm = copy.deepcopy(model.language_model).double()
    lm.cfg.dtype = torch.float64
    outputs = []

    def still(x, hook):
        return x.detach()

    def leaf(x, hook):
        # What attention adds depends on what is below, what an MLP adds does not.
        if hook.name.endswith("mlp_out"):
            x = x.detach()
        outputs.append(x.clone().requires_grad_() if not x.requires_grad else x.clone())
        outputs[-1].retain_grad()
        return outputs[-1]

    ends = ("hook_pattern", "hook_scale")
    hooks = [(name, still) for name in lm.hook_dict if name.endswith(ends)]
    for layer in range(N_LAYERS):
        hooks += [(f"blocks.{layer}.{out}", leaf) for out in ("hook_attn_out", "hook_mlp_out")]
    with torch.enable_grad(), lm.hooks(hooks):
        logits = lm(torch.tensor([prompt]))[0, -1]
        difference = logits[found.other_logits.argmax()] - logits[found.logits.argmax()]
        difference.backward()
    return torch.stack([output.grad[0] for output in outputs])


@pytest.mark.parametrize("at", [-1, 2, 0])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_slopes_are_the_derivatives_of_the_frozen_model(name, at, model_of):
    model, prompt = model_of(name), PROMPTS[name]
    position = at % len(prompt)
    found = contrast(model, prompt, other_of(model, name), position, position)
    gradients = slopes_by_autograd(model, prompt, found)
    assert {f.kind for f in found.features} == {"lorsa", "transcoder"}
    for f in found.features:
        sublayer = 2 * f.layer + (f.kind == "transcoder")
        written = model.module(sublayer).decoder.rows(torch.tensor([f.index]))[0].double()
        expected = float(written @ gradients[sublayer, position])
        assert f.slope == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert max(abs(f.effect) for f in found.features) > 1e-3


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_activations_are_those_of_the_formulas_in_both_prompts(name, model_of):
    model, prompt = model_of(name), PROMPTS[name]
    other = other_of(model, name)
    found = numbers(contrast(model, prompt, other, 2, 4).features)
    names = [f"blocks.{n}.{ln}.hook_normalized" for n in range(N_LAYERS) for ln in ("ln1", "ln2")]
    expected = {}
    for side, (ids, position) in enumerate(((prompt, 2), (other, 4))):
        with torch.no_grad():
            _, seen = model.language_model.run_with_cache(torch.tensor([ids]))
        for sublayer, at in enumerate(names):
            acts = activations_of(model.module(sublayer), seen[at][0])[position]
            kind = ("lorsa", "transcoder")[sublayer % 2]
            for index in acts.nonzero().flatten().tolist():
                key = (sublayer // 2, kind, index)
                expected.setdefault(key, [0.0, 0.0])[side] = float(acts[index])
    assert found.keys() == expected.keys()
    for key, (here, there) in expected.items():
        assert found[key].activation == pytest.approx(here, abs=1e-4)
        assert found[key].other_activation == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_of_the_last_layer_s_mlp_they_are_the_edges_of_a_graph(name, model_of):
    model, prompt = model_of(name), PROMPTS[name]
    last = len(prompt) - 1
    found = contrast(model, prompt, other_of(model, name), last, last)
    tokens = int(found.other_logits.argmax()), int(found.logits.argmax())
    target = LogitDifference((tokens[0],), (tokens[1],), "difference")
    graph = attribute(freeze(model, torch.tensor(prompt)), attribution_targets=[target])
    row = graph.adjacency_matrix[-1]
    edges = {
        index: float(row[n])
        for n, (sublayer, position, index) in enumerate(graph.active_features.tolist())
        if sublayer >= 2 * N_LAYERS - 1 and position == last
    }
    ours = {
        f.index: f.slope * f.activation
        for f in found.features
        if f.layer == N_LAYERS - 1 and f.kind == "transcoder" and f.activation
    }
    assert ours == pytest.approx(edges, rel=1e-4, abs=1e-5)
    assert edges


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["relu-6", "jumprelu-9", "glu-6", "few-heads-9"])
def test_in_16_bits_they_are_near_the_same_weights_in_float32(name, dtype, model_of):
    model, prompt = model_of(name, dtype), PROMPTS[name]
    other = other_of(model, name)
    ours, truth = (
        numbers(contrast(each, prompt, other, 3, 3).features) for each in (model, in_float32(model))
    )
    common = ours.keys() & truth.keys()
    assert len(common) >= 0.95 * max(len(ours), len(truth))
    for field in ("activation", "other_activation", "slope"):
        found, exact = (
            torch.tensor([getattr(side[key], field) for key in common]) for side in (ours, truth)
        )
        assert (found - exact).norm() < CLOSE[dtype] * exact.norm()


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", ["topk-9", "relu-6", "glu-6", "few-heads-9"])
def test_a_cuda_device_gives_the_cpu_s_numbers(name, dtype, cuda, model_of, tmp_path):
    model, prompt = model_of(name, dtype), PROMPTS[name]
    other = other_of(model, name)
    expected = numbers(contrast(model, prompt, other, 3, 4).features)
    on_device = complete_model(write_case(tmp_path, CASES[name]), dtype, device="cuda:0")
    contrasted = contrast(on_device, prompt, other, 3, 4)
    assert contrasted.logits.is_cuda
    found = numbers(contrasted.features)
    common = found.keys() & expected.keys()
    least = 1 if dtype == torch.float32 else 0.95  # in 16 bits some are at their threshold
    assert len(common) >= least * max(len(found), len(expected))
    for field in ("activation", "other_activation", "slope"):
        ours, theirs = (
            torch.tensor([getattr(side[key], field) for key in common])
            for side in (found, expected)
        )
        assert (ours - theirs).norm() < CLOSE[dtype] * theirs.norm()


def test_two_prompts_of_one_prediction_have_no_difference(model_of):
    prompt = PROMPTS["relu-6"]
    found = contrast(model_of("relu-6"), prompt, prompt, 1, 1)
    assert found.features == []
    assert torch.equal(found.logits, found.other_logits)


def test_numbers_that_overflow_are_refused(tmp_path):
    model = complete_model(write_case(tmp_path, CASES["relu-6"]))
    model.transcoders[1].b_E[3] = torch.inf
    prompt = PROMPTS["relu-6"]
    with pytest.raises(NotFinite, match="the features' activations on a prompt"):
        other_of(model, "relu-6")
    with torch.no_grad():
        model.language_model.W_E[prompt[0]] = torch.inf
    with pytest.raises(NotFinite, match="the model's logits after a prompt"):
        contrast(model, prompt, [7, 8], 0, 0)


def test_a_stopped_contrast_leaves_the_model_as_it_came(model_of):
    model, prompt = model_of("relu-6"), PROMPTS["relu-6"]
    other = other_of(model, "relu-6")

    def stop():
        raise InterruptedError

    before = contrast(model, prompt, other, 1, 1)
    with pytest.raises(InterruptedError):
        contrast(model, prompt, other, 1, 1, check=stop)
    assert contrast(model, prompt, other, 1, 1).features == before.features
