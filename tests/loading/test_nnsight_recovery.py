"""Whatever happens in a job, the nnsight engine's model leaves it as it came, with room again."""

import itertools
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import psutil
import pytest
import torch
from circuit_tracer.attribution.context_nnsight import AttributionContext

import attribution
import steering
from errors import Cancelled, DeadlineExceeded, NotFinite, OutOfMemory
from steering import Intervention
from tests.support.full_memory import FULL
from tests.support.hugging_face_models import shared_model
from tests.support.steering_cases import (
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    assert_equal,
    generate,
    options,
)
from tests.support.tiny_models import prompt_tokens


class Broken(Exception):
    pass


def broken(*_: Any) -> None:
    raise Broken


def fail_in(path: str, from_pass: int = 0) -> Callable[[Any], Any]:
    """Make a module of the Hugging Face model fail; returns what takes that back."""
    passes = iter(range(1000))

    def fail(*_: Any) -> None:
        if next(passes) >= from_pass:
            raise Broken

    return lambda model: model._module.get_submodule(path).register_forward_hook(fail).remove


def attribute(model: Any, **changes: Any) -> Any:
    how = {"max_feature_nodes": 40, "batch_size": 16, **changes}
    return attribution.attribute(prompt_tokens(), model, **how)


def steer(model: Any, **changes: Any) -> Any:
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    return steering.generate_both(model, PROMPT, interventions, options(**changes))


def late() -> None:
    raise DeadlineExceeded("too late")


def third_time() -> Callable[[], None]:
    calls = itertools.count(1)

    def check() -> None:
        if next(calls) == 3:
            raise Cancelled("no longer wanted")

    return check


FAILURES: dict[str, tuple[Callable[[Any], Any], str | None, type[Exception]]] = {
    "attribution, in the first pass": (attribute, "model.layers.1.mlp", Broken),
    "attribution, in its gradient pass": (attribute, "model.layers.2.self_attn 1", Broken),
    "attribution, stopped": (lambda m: attribute(m, check=third_time()), None, Cancelled),
    "attribution, too late": (lambda m: attribute(m, check=late), None, DeadlineExceeded),
    "attribution, in a callback": (lambda m: attribute(m, on_progress=broken), None, Broken),
    "steering, in a pass": (steer, "model.layers.1.mlp 3", Broken),
    "steering, in the frozen pass": (
        lambda m: steer(m, freeze_attention=True), "model.layers.1.self_attn", Broken
    ),
    "steering, reading": (
        lambda m: steering.feature_activations(m, PROMPT, [(1, 4, 3)]), "model.layers.2", Broken
    ),
    "steering, stopped": (lambda m: steer(m, check=third_time()), None, Cancelled),
    "steering, in a callback": (lambda m: steer(m, on_token=broken), None, Broken),
    "steering, in its numbers": (
        lambda m: generate(m, [Intervention(0, 1, None, 1e39)]), None, NotFinite
    ),
}  # fmt: skip


def state(model: Any) -> dict[str, Any]:
    """What a job must leave as it found it."""
    for thread in threading.enumerate():
        if thread.name.startswith("Mediator"):
            thread.join(timeout=60)
    return {
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model._module.named_modules()
        },
        "operations": [
            operation.hooked
            for module in model._module.modules()
            for operation in getattr(
                getattr(module, "__source_accessor__", None), "operations", {}
            ).values()
        ],
        "parameters": {
            name: (parameter._version, parameter.requires_grad, parameter.is_inference())
            for name, parameter in model._module.named_parameters()
        },
        "cfg": dict(vars(model.cfg)),
        "config": model._module.config.to_dict(),
        "interleaving": model.interleaver.interleaving,
        "threads": [t for t in threading.enumerate() if t.name.startswith("Mediator")],
    }


@cache
def fresh() -> tuple[Any, Any]:
    model = shared_model("nnsight", "llama")
    return attribute(model), steer(model, freeze_attention=True)


def failed(failure: str, model: Any) -> None:
    """Run a job that fails, and take back what made it fail."""
    run, place, error = FAILURES[failure]
    undo = None
    if place is not None:
        path, _, from_pass = place.partition(" ")
        undo = fail_in(path, int(from_pass or 0))(model)
    try:
        with pytest.raises(error):
            run(model)
    finally:
        if undo is not None:
            undo()


@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_failure_the_next_jobs_are_those_of_a_fresh_model(failure: str) -> None:
    model = shared_model("nnsight", "llama")
    graph, both = fresh()
    before = state(model)
    failed(failure, model)
    assert state(model) == before
    assert torch.equal(attribute(model).adjacency_matrix, graph.adjacency_matrix)
    for ours, expected in zip(steer(model, freeze_attention=True), both, strict=True):
        assert_equal(ours, expected)


@pytest.mark.soak
def test_hundreds_of_failures_leave_nothing_behind() -> None:
    model = shared_model("nnsight", "llama")
    graph, _ = fresh()
    before, memory = state(model), []
    for _ in range(20):
        for failure in FAILURES:
            failed(failure, model)
        assert torch.equal(attribute(model).adjacency_matrix, graph.adjacency_matrix)
        memory.append(psutil.Process().memory_info().rss)
    assert state(model) == before
    assert max(memory) - memory[2] < 30e6


class TestMemory:
    @pytest.mark.parametrize("what", FULL)
    def test_batches_are_halved_when_memory_runs_out(self, what: str) -> None:
        model = shared_model("nnsight", "gemma2")
        whole, seen = attribute(model, update_interval=1), []

        def count(_module: Any, args: tuple[Any, ...]) -> None:
            seen.append(len(args[0]))
            if len(args[0]) > 5:
                FULL[what]()

        handle = model._module.model.layers[1].register_forward_pre_hook(count)
        try:
            halved = attribute(model, update_interval=1)
        finally:
            handle.remove()
        assert seen == [1, 16, 8, 4]
        # The ranking goes by the batch size that was asked for.
        assert torch.equal(halved.selected_features, whole.selected_features)
        torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)

    def test_a_batch_has_no_more_rows_than_there_are_features_to_attribute(self) -> None:
        model = shared_model("nnsight", "gemma2")
        whole, seen = attribute(model, batch_size=40), []

        def count(_module: Any, args: tuple[Any, ...]) -> None:
            seen.append(len(args[0]))
            assert len(args[0]) <= 40

        handle = model._module.model.layers[1].register_forward_pre_hook(count)
        try:
            graph = attribute(model, batch_size=2**53)
        finally:
            handle.remove()
        assert seen == [1, 40]
        assert torch.equal(graph.selected_features, whole.selected_features)
        torch.testing.assert_close(graph.adjacency_matrix, whole.adjacency_matrix)

    def test_a_batch_whose_gradients_do_not_fit_is_split_too(self, monkeypatch) -> None:
        model, sizes = shared_model("nnsight", "gemma2"), []
        whole = attribute(model)
        compute_batch = AttributionContext.compute_batch

        def little_memory(context: Any, layers: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(layers))
            rows = compute_batch(context, layers, *args, **kwargs)
            if len(layers) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return rows

        monkeypatch.setattr(AttributionContext, "compute_batch", little_memory)
        halved = attribute(model)
        assert sizes.count(16) == 1
        assert torch.equal(halved.selected_features, whole.selected_features)
        torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)

    def test_a_single_target_that_does_not_fit_is_an_error_to_act_on(self, monkeypatch) -> None:
        def no_memory(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(AttributionContext, "compute_batch", no_memory)
        with pytest.raises(OutOfMemory, match="shorter prompt"):
            attribute(shared_model("nnsight", "gemma2"), batch_size=2)


def test_numbers_that_overflow_are_an_error(monkeypatch) -> None:
    model = shared_model("nnsight", "llama")
    weight = model._module.model.layers[1].self_attn.o_proj.weight
    kept = weight.data.clone()
    weight.data[0] = float("inf")
    try:
        with pytest.raises(NotFinite, match="not finite"):
            attribute(model)
    finally:
        weight.data = kept
