"""Experiments and contrasts on a CUDA device, against the CPU's numbers, and in 16 bits."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from attribution.contrast import contrast
from attribution.support import unsupported
from benchmarks.emulated_cuda import Counts, EmulatedCuda
from steering.interventions import Frozen, Outcomes, intervene
from tests.support.cuda_devices import DEVICES, cuda_device, emulated_only, on_cuda
from tests.support.steering_cases import KINDS, PROMPT
from tests.support.tiny_models import D_TRANSCODER, N_LAYERS, prompt_tokens, tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 0.02}
FROZEN = [Frozen(attention=False), Frozen(), Frozen(range(1, 3)), Frozen(range(N_LAYERS))]
FEATURES = [(0, 2, 3), (1, 3, 9), (1, 3, 30), (1, 4, 9), (2, 4, 5), (2, 5, 41)]
EXPERIMENTS = [
    {FEATURES[0]: 3.0, FEATURES[1]: 0.0},
    {FEATURES[3]: 4.0, FEATURES[4]: 2.0},
    {FEATURES[2]: -1.0},
]
OTHERS = [prompt_tokens(7, seed).tolist() for seed in range(2, 30)]


@pytest.fixture(params=DEVICES)
def cuda(request: pytest.FixtureRequest) -> Iterator[EmulatedCuda | None]:
    with cuda_device(request.param) as device:
        yield device


def model_of(kind: str, dtype: torch.dtype) -> Any:
    architecture, dictionary, hooks, skip = KINDS[kind]
    if hooks == "gemma scope" and dtype != torch.float32:
        skip = False  # circuit-tracer's skip connection multiplies a float32 norm with it
    return tiny_model(architecture, dictionary, hooks, skip=skip, dtype=dtype)


def run(model: Any, frozen: Frozen) -> Outcomes:
    return intervene(model, PROMPT, FEATURES, EXPERIMENTS, frozen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_experiments_have_the_cpus_numbers(
    kind: str, dtype: torch.dtype, cuda: EmulatedCuda | None
) -> None:
    model = model_of(kind, dtype)
    expected = [run(model, frozen) for frozen in FROZEN]
    model = on_cuda(model)
    for frozen, on_cpu in zip(FROZEN, expected, strict=True):
        outcomes = run(model, frozen)
        assert outcomes.logits.is_cuda
        assert not outcomes.activations.is_cuda
        for found, wanted in (
            (outcomes.logits.cpu(), on_cpu.logits),
            (outcomes.activations, on_cpu.activations),
        ):
            torch.testing.assert_close(
                found.float(), wanted.float(), atol=CLOSE[dtype], rtol=CLOSE[dtype]
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "parallel" not in kind])
def test_contrasts_have_the_cpus_numbers(
    kind: str, dtype: torch.dtype, cuda: EmulatedCuda | None
) -> None:
    model = model_of(kind, dtype)
    assert unsupported(model) is None
    found = [contrast(model, PROMPT, other, 3, 4).features for other in OTHERS]
    which = next(n for n, features in enumerate(found) if features)
    on_device = contrast(on_cuda(model), PROMPT, OTHERS[which], 3, 4).features
    expected = {(f.layer, f.index): f for f in found[which]}
    common = 0
    for feature in on_device:
        other = expected.get((feature.layer, feature.index))
        if other is None:  # in 16 bits one at its threshold
            assert dtype != torch.float32
            continue
        common += 1
        assert feature.activation == close_to(other.activation, dtype)
        assert feature.other_activation == close_to(other.other_activation, dtype)
        assert feature.slope == close_to(other.slope, dtype)
    assert common >= 0.95 * len(expected)


def close_to(number: float, dtype: torch.dtype) -> Any:
    return pytest.approx(number, rel=CLOSE[dtype], abs=CLOSE[dtype])


@emulated_only
def test_experiments_that_do_not_fit_go_in_halves_on_the_device(
    cuda: EmulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    model = on_cuda(tiny_model("gemma2"))
    many = [{(1, 3, index): 2.0} for index in range(48)]
    features = [next(iter(experiment)) for experiment in many]

    def run_and_peak(n: int) -> tuple[Outcomes, int]:
        torch.cuda.reset_peak_memory_stats()
        outcomes = intervene(model, PROMPT, features, many[:n], Frozen(range(2)))
        return outcomes, cuda.memory.peak

    _, less = run_and_peak(20)
    whole, more = run_and_peak(48)
    with cuda.memory_limited_to((less + more) // 2):
        halved, _ = run_and_peak(48)
    assert cuda.memory.refused > 0
    assert "out of memory: running 24 experiments at once" in caplog.text
    torch.testing.assert_close(halved.logits.cpu(), whole.logits.cpu(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(halved.activations, whole.activations, atol=1e-5, rtol=1e-4)


@emulated_only
@pytest.mark.parametrize("dictionary", ["jump_relu", "cross_layer_jump_relu"])
def test_experiments_launch_no_more_for_more_features_at_more_positions(
    dictionary: str, cuda: EmulatedCuda
) -> None:
    model = on_cuda(tiny_model("gemma2", dictionary, dtype=torch.bfloat16))

    def counts(features: list[tuple[int, int, int]]) -> Counts:
        with cuda.counts.during() as counted:
            intervene(model, PROMPT, features, [dict.fromkeys(features, 2.0)], Frozen())
        return counted

    few, many = (
        counts(list(product(range(N_LAYERS), positions, indices)))
        for positions, indices in (([2], [5]), (range(1, 6), range(9)))
    )
    assert many.n_kernels == few.n_kernels
    assert many.to_device == few.to_device
    assert many.synchronisations == few.synchronisations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("frozen", FROZEN, ids=["free", "attention", "two layers", "all layers"])
def test_in_16_bits_they_are_as_near_the_float32_truth_as_the_library(
    frozen: Frozen, dtype: torch.dtype
) -> None:
    ours, theirs, compared = 0.0, 0.0, 0
    many = [
        {(layer, position, (7 * n + layer) % D_TRANSCODER): 3.0 + n / 4}
        for n, (layer, position) in enumerate((n % 3, 1 + n % 5) for n in range(12))
    ]
    features = [next(iter(experiment)) for experiment in many]
    for kind in KINDS:
        model = model_of(kind, dtype)
        found = intervene(model, PROMPT, features, many, frozen).logits[1:].softmax(-1).float()
        library = [library_probabilities(model, experiment, frozen) for experiment in many]
        exact = intervene(model.to(torch.float32), PROMPT, features, many, frozen)
        truth = exact.logits[1:].softmax(-1)
        errors = (found - truth).abs().sum(-1)
        assert errors.max() < (0.4 if dtype == torch.bfloat16 else 0.05), kind
        for n, theirs_of in enumerate(library):
            if theirs_of is not None:
                compared += 1
                ours += float(errors[n])
                theirs += float((theirs_of - truth[n]).abs().sum())
    assert compared >= 5 * len(many)
    assert ours <= 1.1 * theirs


def library_probabilities(
    model: Any, experiment: dict[tuple[int, int, int], float], frozen: Frozen
) -> torch.Tensor | None:
    """Of the next token; None where circuit-tracer mixes dtypes itself."""
    try:
        logits, _ = model.feature_intervention(
            torch.tensor(PROMPT),
            [(*feature, value) for feature, value in experiment.items()],
            constrained_layers=frozen.layers or None,
            freeze_attention=frozen.attention,
        )
    except RuntimeError as error:
        assert "dtype" in str(error)
        return None
    return logits[0, -1].softmax(-1, dtype=torch.float32).detach()
