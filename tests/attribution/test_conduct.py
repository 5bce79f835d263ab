"""How attribution behaves in a worker: progress, stopping, and leaving the model as it came."""

import copy
import itertools
import sys

import pytest
import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext

import attribution
import errors
from attribution import memory
from tests.support.full_memory import FULL
from tests.support.tiny_models import prompt_tokens, tiny_model

attribute_module = sys.modules["attribution.attribute"]  # the name is the function's
IN_THREE_BATCHES = {"max_feature_nodes": 50, "batch_size": 20, "update_interval": 1}
WAYS = pytest.mark.parametrize("architecture", ["gemma2", "parallel"], ids=["swept", "library"])


def condition(model):
    """Everything of a model that a later job could see."""
    hooks = {
        name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
        for name, point in model.hook_dict.items()
    }
    gradients = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return hooks, gradients, model.context_level, copy.copy(vars(model.cfg)), model.training


@WAYS
def test_progress_counts_feature_nodes_from_none_to_all(architecture):
    seen = []
    attribution.attribute(
        prompt_tokens(),
        tiny_model(architecture, "relu", "gemma scope"),
        **IN_THREE_BATCHES,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 50), (20, 50), (40, 50), (50, 50)]


def test_a_whole_interval_is_one_step_where_there_is_memory_for_it(monkeypatch):
    def steps(bytes_of_batch):
        monkeypatch.setitem(memory.BYTES_OF_BATCH, "cpu", bytes_of_batch)
        seen = []
        graph = attribution.attribute(
            prompt_tokens(),
            tiny_model("gemma2", "relu"),
            max_feature_nodes=50,
            batch_size=10,
            update_interval=2,
            on_progress=lambda done, total: seen.append(done),
        )
        return seen, graph

    (together, whole), (apart, parts) = steps(1 << 28), steps(0)
    assert together == [0, 20, 40, 50]
    assert apart == [0, 10, 20, 30, 40, 50]
    assert torch.equal(whole.selected_features, parts.selected_features)
    torch.testing.assert_close(whole.adjacency_matrix, parts.adjacency_matrix)


@WAYS
@pytest.mark.parametrize("asked", [1, 2, 3])
def test_what_check_raises_stops_attribution_between_batches(architecture, asked):
    calls, seen = itertools.count(1), []

    def check():
        if seen and next(calls) == asked:  # once features are found
            raise errors.Cancelled("no longer wanted")

    with pytest.raises(errors.Cancelled, match="no longer wanted"):
        attribution.attribute(
            prompt_tokens(),
            tiny_model(architecture, "relu", "gemma scope"),
            **IN_THREE_BATCHES,
            on_progress=lambda done, total: seen.append(done),
            check=check,
        )
    assert seen == [0, 20][: max(1, asked - 1)]


@WAYS
def test_the_model_is_left_as_it_came_when_all_goes_well(architecture):
    model = tiny_model(architecture, "relu", "gemma scope")
    before = condition(model)
    logits = model(prompt_tokens()).detach()
    attribution.attribute(prompt_tokens(), model, max_feature_nodes=20)
    assert condition(model) == before
    assert torch.equal(model(prompt_tokens()).detach(), logits)


@WAYS
@pytest.mark.parametrize("where", ["progress", "check", "a hook"])
def test_the_model_is_left_as_it_came_when_something_fails(architecture, where, monkeypatch):
    model = tiny_model(architecture, "relu", "gemma scope")
    before, logits = condition(model), model(prompt_tokens()).detach()

    def fail(*args, **kwargs):
        raise errors.DeadlineExceeded("too late")

    callbacks = {}
    if where == "progress":
        callbacks["on_progress"] = lambda done, total: done and fail()
    elif where == "check":
        callbacks["check"] = fail
    else:
        monkeypatch.setattr(model.blocks[1].attn, "calculate_z_scores", fail)
    with pytest.raises(errors.DeadlineExceeded):
        attribution.attribute(prompt_tokens(), model, max_feature_nodes=20, **callbacks)
    monkeypatch.undo()
    assert condition(model) == before
    assert torch.equal(model(prompt_tokens()).detach(), logits)


def test_gradients_may_be_switched_off_around_the_librarys_way():
    # A worker runs whole jobs under no_grad; the library needs autograd.
    model = tiny_model("parallel", "relu", "gemma scope")
    with torch.no_grad():
        graph = attribution.attribute(prompt_tokens(), model, max_feature_nodes=20)
    assert graph.adjacency_matrix.abs().max() > 0


def test_the_sweep_runs_without_autograd(monkeypatch):
    monkeypatch.setattr(AttributionContext, "compute_batch", None)
    model = tiny_model("gemma2")
    graph = attribution.attribute(prompt_tokens(), model, max_feature_nodes=20)
    assert not graph.adjacency_matrix.requires_grad
    assert not graph.activation_values.requires_grad


@pytest.mark.parametrize("what", FULL)
def test_batches_are_halved_when_memory_runs_out(what, monkeypatch):
    model, sizes = tiny_model("gemma2", "relu"), []
    settings = {"max_feature_nodes": 60, "batch_size": 32, "update_interval": 1}
    whole = attribution.attribute(prompt_tokens(), model, **settings)
    rows_of = attribute_module.attribution_rows

    def little_memory(local, layers, positions, reads, rows):
        sizes.append(len(layers))
        rows_of(local, layers, positions, reads, rows)
        if len(layers) > 10:
            FULL[what]()

    monkeypatch.setattr(attribute_module, "attribution_rows", little_memory)
    halved = attribution.attribute(prompt_tokens(), model, **settings)
    assert 32 in sizes
    assert max(sizes[sizes.index(8) :]) <= 16
    # The ranking goes by the batch size that was asked for.
    assert torch.equal(halved.selected_features, whole.selected_features)
    torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)


def test_a_single_target_that_does_not_fit_is_an_error_to_act_on(monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attribute_module, "attribution_rows", no_memory)
    with pytest.raises(errors.OutOfMemory, match="shorter prompt"):
        attribution.attribute(prompt_tokens(), tiny_model(), max_feature_nodes=5)


def test_activations_that_overflow_are_an_error_and_no_endless_loop():
    model = tiny_model("llama", "relu")
    model.blocks[1].attn.W_O.data[0] = float("inf")
    with pytest.raises(errors.NotFinite, match="not finite"):
        attribution.attribute(prompt_tokens(), model, max_feature_nodes=5)


def test_edges_that_overflow_are_an_error_and_no_endless_loop():
    model = tiny_model("llama", "relu")
    # The forward pass, which the transcoders take no part in, stays finite.
    model.transcoders[1].W_dec.data *= 1e38
    model.transcoders[2].W_enc.data *= 1e30
    with pytest.raises(errors.NotFinite, match="not finite"):
        attribution.attribute(prompt_tokens(), model, max_feature_nodes=50, batch_size=4)
