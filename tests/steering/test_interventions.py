"""Experiments on features have the numbers of circuit-tracer's own, run one by one."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.contrast import contrast
from errors import InvalidInput, NotFinite, OutOfMemory
from steering.features import Feature
from steering.interventions import Experiment, Frozen, Outcomes, intervene
from steering.transformerlens import TransformerLensPasses
from tests.support.full_memory import FULL
from tests.support.steering_cases import KINDS, PROMPT, active_features, shared_model
from tests.support.tiny_models import D_TRANSCODER, N_LAYERS, prompt_tokens, tiny_model

FROZEN = {
    "free": Frozen(attention=False),
    "attention": Frozen(),
    "the first layers": Frozen(range(2)),
    "the last layers": Frozen(range(1, N_LAYERS), attention=False),
    "one layer": Frozen(range(1, 2)),
    "all layers": Frozen(range(N_LAYERS)),
}


def experiments_on(active: dict[Feature, float]) -> list[Experiment]:
    first, *_, last = active
    return [
        dict.fromkeys(active, 0.0),
        {first: -2 * active[first]},
        {last: 5 * active[last], first: 3.0},
        {},
        {(1, 0, 9): 2.0, (0, 3, 5): 4.0, (0, 4, 5): 1.5},  # one at the silent position
    ]


def run(
    model: Any, experiments: list[Experiment], frozen: Frozen, more: list[Feature] | None = None
) -> tuple[list[Feature], Outcomes]:
    features = list(dict.fromkeys([*(more or []), *(f for e in experiments for f in e)]))
    return features, intervene(model, PROMPT, features, experiments, frozen)


def library(model: Any, experiment: Experiment, frozen: Frozen) -> tuple[torch.Tensor, Any]:
    logits, activations = model.feature_intervention(
        torch.tensor(PROMPT),
        [(*feature, value) for feature, value in experiment.items()],
        constrained_layers=frozen.layers or None,
        freeze_attention=frozen.attention,
    )
    return logits[0, -1], activations


def assert_as_in_the_library(
    model: Any, experiments: list[Experiment], frozen: Frozen, more: list[Feature]
) -> None:
    features, ours = run(model, experiments, frozen, more)
    for row, experiment in enumerate([{}, *experiments]):
        logits, activations = library(model, experiment, frozen)
        torch.testing.assert_close(ours.logits[row], logits.detach(), atol=2e-5, rtol=1e-4)
        for column, feature in enumerate(features):
            expected = float(activations[feature])
            written = range(feature[0], N_LAYERS if is_cross_layer(model) else feature[0] + 1)
            if not frozen.layers or set(written) & set(frozen.layers):
                expected = experiment.get(feature, expected)
            got = float(ours.activations[row, column])
            assert got == pytest.approx(expected, rel=1e-4, abs=2e-5), (row, feature)


def is_cross_layer(model: Any) -> bool:
    return not hasattr(model.transcoders, "__iter__")


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_each_experiment_is_the_library_s_own(model: Any, frozen: Frozen) -> None:
    active = active_features(model)
    others = [(layer, 5, index) for layer, index in product(range(N_LAYERS), range(0, 60, 7))]
    assert_as_in_the_library(model, experiments_on(active), frozen, others)


FEATURES = st.tuples(
    st.integers(0, N_LAYERS - 1), st.integers(1, len(PROMPT) - 1), st.integers(0, D_TRANSCODER - 1)
)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    frozen=st.builds(
        lambda first, n, attention: Frozen(range(first, min(first + n, N_LAYERS)), attention),
        st.integers(0, N_LAYERS - 1),
        st.integers(0, N_LAYERS),
        st.booleans(),
    ),
    experiments=st.lists(
        st.dictionaries(FEATURES, st.floats(-8, 8, width=32), max_size=5), min_size=1, max_size=4
    ),
)
def test_any_experiments_are_the_library_s_own(
    kind: str, frozen: Frozen, experiments: list[Experiment]
) -> None:
    assert_as_in_the_library(shared_model(kind), experiments, frozen, [])


def test_every_way_of_freezing_gives_other_numbers() -> None:
    model = shared_model("llama, ReLU, skip")
    experiment = {feature: 4 * value for feature, value in active_features(model).items()}
    rows = [run(model, [experiment], frozen)[1].logits[1] for frozen in FROZEN.values()]
    for one, other in product(rows, repeat=2):
        assert one is other or (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("dictionary", ["relu", "cross_layer_relu"])
def test_lazy_dictionaries_give_what_eager_ones_give(dictionary: str, tmp_path: Path) -> None:
    eager = tiny_model("gemma2", dictionary)
    lazy = tiny_model("gemma2", dictionary, lazy_in=tmp_path)
    experiments = experiments_on(active_features(eager))
    for frozen in FROZEN.values():
        one, other = (run(model, experiments, frozen)[1] for model in (eager, lazy))
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.activations, other.activations)
    others = (prompt_tokens(7, seed).tolist() for seed in range(2, 30))
    for text in others:
        found, from_files = (contrast(model, PROMPT, text, 3, 4) for model in (eager, lazy))
        assert found.features == from_files.features
        if found.features:
            return
    raise AssertionError("no two prompts have other predictions")


@pytest.mark.parametrize("what", FULL)
def test_when_memory_runs_out_the_experiments_go_in_halves(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model("gemma2, JumpReLU")
    experiments = experiments_on(active_features(model))
    _, whole = run(model, experiments, Frozen())
    batches: list[int] = []
    limit_rows(monkeypatch, 3, batches, FULL[what])
    _, halved = run(model, experiments, Frozen())
    assert batches == [6, 3, 3, 2]
    torch.testing.assert_close(halved.logits, whole.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(halved.activations, whole.activations, atol=1e-5, rtol=1e-4)


def test_when_not_even_one_fits_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("gemma2, JumpReLU")
    limit_rows(monkeypatch, 1, [])
    with pytest.raises(OutOfMemory, match="single experiment"):
        run(model, experiments_on(active_features(model)), Frozen())


def limit_rows(
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    batches: list[int],
    fail: Callable[[], None] = FULL["device"],
) -> None:
    """A device on which passes of more rows than `most` run out of memory."""
    real = TransformerLensPasses.last_logits

    def limited(self: Any, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append(len(tokens))
        if len(tokens) > most:
            fail()
        return real(self, tokens, *args, **kwargs)

    monkeypatch.setattr(TransformerLensPasses, "last_logits", limited)


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidInput, match="constrained_layers ends at 3, the model has 3 layers"):
        run(shared_model("gpt2, ReLU"), [{(0, 1, 2): 1.0}], Frozen(range(1, 4)))


def test_the_experiment_that_overflows_is_named() -> None:
    with pytest.raises(NotFinite, match=r"experiments\[1\]"):
        run(shared_model("gpt2, ReLU"), [{(0, 1, 2): 1.0}, {(0, 1, 2): 1e39}], Frozen())


def test_a_stopped_run_leaves_the_model_as_it_came() -> None:
    model = shared_model("gpt2, ReLU")
    experiments = experiments_on(active_features(model))

    def stop() -> None:
        raise InterruptedError

    features = list(experiments[0])
    before = model(torch.tensor(PROMPT))
    with pytest.raises(InterruptedError):
        intervene(model, PROMPT, features, [experiments[0]], Frozen(range(2)), check=stop)
    assert torch.equal(model(torch.tensor(PROMPT)), before)
