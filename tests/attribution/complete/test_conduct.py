"""How a complete model's attribution behaves in a worker: progress, stopping, memory, numbers."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import errors
from attribution import memory
from attribution.complete import CompleteModel, attribute, freeze, trace_attention
from attribution.complete.modules import Decoder
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_engine import complete_model

attribute_module = sys.modules["attribution.complete.attribute"]  # the name is the function's
tracing_module = sys.modules["attribution.complete.tracing"]
CASE = CASES["topk-9"]
IN_THREE_BATCHES: dict[str, Any] = {"max_feature_nodes": 50, "batch_size": 20}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture
def model(directory: Path) -> CompleteModel:
    return complete_model(write_case(directory, CASE))


@pytest.fixture
def tokens(model: CompleteModel) -> Tensor:
    return torch.tensor(model.tokenizer.encode(CASE.prompt, add_special_tokens=False))


def condition(model: CompleteModel) -> Any:
    """Everything of the language model that a later job could see."""
    inner = model.language_model
    hooks = {
        name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
        for name, point in inner.hook_dict.items()
    }
    sums = {name: float(weight.detach().sum()) for name, weight in inner.named_parameters()}
    gradients = {name for name, weight in inner.named_parameters() if weight.requires_grad}
    return hooks, sums, gradients, inner.context_level, dict(vars(inner.cfg)), inner.training


def test_progress_counts_feature_nodes_from_none_to_all(
    model: CompleteModel, tokens: Tensor
) -> None:
    seen: list[tuple[int, int]] = []
    attribute(
        freeze(model, tokens),
        **IN_THREE_BATCHES,
        on_progress=lambda *report: seen.append(report),
    )
    assert seen == [(0, 50), (20, 50), (40, 50), (50, 50)]


def test_progress_of_tracing_counts_heads_from_none_to_all(
    model: CompleteModel, tokens: Tensor
) -> None:
    local, seen = freeze(model, tokens), []
    graph = attribute(local)
    trace_attention(graph, local, on_progress=lambda *report: seen.append(report))
    done, totals = zip(*seen, strict=True)
    assert len(set(totals)) == 1
    assert done[0] == 0
    assert done[-1] == totals[0] > 10
    assert list(done) == sorted(set(done))


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_what_check_raises_stops_attribution_between_batches(
    asked: int, model: CompleteModel, tokens: Tensor
) -> None:
    before, calls, seen = condition(model), itertools.count(1), []

    def check() -> None:
        if next(calls) == asked:
            raise errors.Cancelled("no longer wanted")

    with pytest.raises(errors.Cancelled, match="no longer wanted"):
        attribute(
            freeze(model, tokens),
            **IN_THREE_BATCHES,
            on_progress=lambda done, _total: seen.append(done),
            check=check,
        )
    assert seen == [0, 20][: max(1, asked - 1)]
    assert condition(model) == before


@pytest.mark.parametrize("asked", [1, 3])
def test_what_check_raises_stops_tracing_between_batches(
    asked: int, model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "_HEADS_AT_ONCE", 2)
    local, calls, seen = freeze(model, tokens), itertools.count(1), []
    graph = attribute(local)

    def check() -> None:
        if next(calls) == asked:
            raise errors.DeadlineExceeded("too late")

    with pytest.raises(errors.DeadlineExceeded):
        trace_attention(
            graph, local, on_progress=lambda done, _total: seen.append(done), check=check
        )
    assert seen == [0, 2, 4][:asked]


@pytest.mark.parametrize("topk", [1, 5, 500])
def test_traces_do_not_depend_on_how_many_heads_are_traced_at_once(
    topk: int, model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = freeze(model, tokens)
    graph = attribute(local)
    together = trace_attention(graph, local, topk=topk)
    sizes: list[int] = []
    heads = tracing_module._Heads

    def counting(local: Any, sublayer: int, of_heads: Tensor, positions: Tensor) -> Any:
        sizes.append(len(of_heads))
        return heads(local, sublayer, of_heads, positions)

    monkeypatch.setattr(tracing_module, "_Heads", counting)
    monkeypatch.setattr(tracing_module, "_ENTRIES_AT_ONCE", 3 * topk * 60)
    apart = trace_attention(graph, local, topk=topk)
    assert max(sizes) <= 3
    assert together.keys() == apart.keys()
    for row, trace in together.items():
        for kind in ("q_marginal", "k_marginal", "pairs"):
            ours, theirs = getattr(trace, kind), getattr(apart[row], kind)
            assert [entry[-1] for entry in ours] == pytest.approx(
                [entry[-1] for entry in theirs], rel=1e-3, abs=1e-4
            )


@pytest.mark.parametrize("where", ["progress", "check", "a module", "a layer", "rows"])
def test_the_model_is_left_as_it_came_when_something_fails(
    where: str, model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, logits = condition(model), model.language_model(tokens[None]).detach()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise errors.DeadlineExceeded("too late")

    def fail_later(done: int, _total: int) -> None:
        if done:
            fail()

    callbacks: dict[str, Any] = {}
    broken = model
    if where == "progress":
        callbacks["on_progress"] = fail_later
    elif where == "check":
        callbacks["check"] = fail
    elif where == "a module":
        decoder = Decoder(fail, model.lorsas[1].decoder.norms)  # type: ignore[arg-type]
        lorsas = [*model.lorsas]
        lorsas[1] = replace(lorsas[1], decoder=decoder)
        broken = replace(model, lorsas=lorsas)
    elif where == "a layer":
        monkeypatch.setattr(model.language_model.blocks[1].attn, "calculate_z_scores", fail)
    else:
        monkeypatch.setattr(attribute_module, "attribution_rows", fail)
    with pytest.raises(errors.DeadlineExceeded):
        attribute(freeze(broken, tokens), max_feature_nodes=20, **callbacks)
    monkeypatch.undo()
    assert condition(model) == before
    assert torch.equal(model.language_model(tokens[None]).detach(), logits)


def test_batches_are_halved_when_memory_runs_out(
    model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    settings: dict[str, Any] = {"max_feature_nodes": 60, "batch_size": 32}
    whole = attribute(freeze(model, tokens), **settings)
    rows_of = attribute_module.attribution_rows

    def little_memory(
        local: Any, layers: Tensor, positions: Tensor, reads: Any, rows: Tensor
    ) -> None:
        sizes.append(len(layers))
        rows_of(local, layers, positions, reads, rows)
        if len(layers) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attribute_module, "attribution_rows", little_memory)
    halved = attribute(freeze(model, tokens), **settings)
    assert 32 in sizes
    assert max(sizes[sizes.index(8) :]) <= 16
    # The ranking goes by the batch size that was asked for.
    assert torch.equal(halved.selected_features, whole.selected_features)
    torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)


def test_a_graph_of_all_features_is_halved_too(
    model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows_of = attribute(freeze(model, tokens)), attribute_module.attribution_rows

    def little_memory(
        local: Any, layers: Tensor, positions: Tensor, reads: Any, rows: Tensor
    ) -> None:
        if len(layers) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows_of(local, layers, positions, reads, rows)

    monkeypatch.setattr(attribute_module, "attribution_rows", little_memory)
    monkeypatch.setitem(memory.BYTES_OF_BATCH, "cpu", 1 << 28)
    halved = attribute(freeze(model, tokens))
    torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)


def test_a_single_target_that_does_not_fit_is_an_error_to_act_on(
    model: CompleteModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attribute_module, "attribution_rows", no_memory)
    with pytest.raises(errors.OutOfMemory, match="shorter prompt"):
        attribute(freeze(model, tokens), max_feature_nodes=5)


def test_no_more_features_than_are_active_are_ever_selected(
    model: CompleteModel, tokens: Tensor
) -> None:
    local = freeze(model, tokens)
    n_active = local.shape.n_active
    whole = attribute(local, max_feature_nodes=None)
    for asked in (n_active, n_active + 1, 10**9):
        graph = attribute(local, max_feature_nodes=asked)
        assert torch.equal(graph.selected_features, torch.arange(n_active))
        assert torch.equal(graph.adjacency_matrix, whole.adjacency_matrix)
    assert len(attribute(local, max_feature_nodes=n_active - 1).selected_features) == n_active - 1


def test_a_prompt_of_one_token_has_a_graph_and_traces(model: CompleteModel) -> None:
    local = freeze(model, torch.tensor([7]))
    graph = attribute(local)
    traces = trace_attention(graph, local)
    assert graph.adjacency_matrix.isfinite().all()
    assert traces
    assert {trace.key_position for trace in traces.values()} == {0}


def _silent(module: Any) -> Any:
    """A module of which no feature is ever active."""
    bias = "b_V" if hasattr(module, "b_V") else "b_E"
    return replace(module, **{bias: torch.full_like(getattr(module, bias), -1e6)})


@pytest.mark.parametrize("kinds", [("lorsas",), ("transcoders",), ("lorsas", "transcoders")])
def test_modules_without_an_active_feature_leave_errors_and_tokens(
    kinds: tuple[str, ...], model: CompleteModel, tokens: Tensor
) -> None:
    silent = {kind: [_silent(module) for module in getattr(model, kind)] for kind in kinds}
    local = freeze(replace(model, **silent), tokens)
    graph = attribute(local, max_feature_nodes=20)
    traces = trace_attention(graph, local)
    assert graph.adjacency_matrix.isfinite().all()
    assert bool(traces) is ("lorsas" not in kinds)
    assert len(graph.selected_features) == (0 if len(kinds) == 2 else 20)


class TestNumbersThatAreNotFinite:
    def test_logits(self, model: CompleteModel, tokens: Tensor) -> None:
        model.language_model.blocks[1].attn.W_O.data[0] = float("inf")
        with pytest.raises(errors.NotFinite, match="logits after this prompt are not finite"):
            attribute(freeze(model, tokens), max_feature_nodes=5)

    @pytest.mark.parametrize("bad", [float("inf"), float("nan")])
    @pytest.mark.parametrize(
        ("kind", "name"),
        [("transcoders", "W_E"), ("transcoders", "b_E"), ("lorsas", "W_V"), ("lorsas", "W_Q")],
    )
    def test_activations(
        self, kind: str, name: str, bad: float, model: CompleteModel, tokens: Tensor
    ) -> None:
        """Before all features that a NaN makes active are given vectors."""
        modules = [*getattr(model, kind)]
        weight = getattr(modules[1], name).clone()
        weight[0] = bad
        modules[1] = replace(modules[1], **{name: weight})
        with pytest.raises(errors.NotFinite, match="activations on this prompt are not finite"):
            freeze(replace(model, **{kind: modules}), tokens)

    @pytest.mark.parametrize("limit", [5, None])
    def test_edges(self, limit: int | None, model: CompleteModel, tokens: Tensor) -> None:
        # The forward pass, which the modules take no part in, stays finite.
        old, reader = model.transcoders[1:3]
        decoder = Decoder(lambda features: old.decoder.rows(features) * 1e20, old.decoder.norms)
        transcoders = [*model.transcoders]
        transcoders[1] = replace(old, decoder=decoder)
        transcoders[2] = replace(reader, W_E=reader.W_E * 1e25)
        with pytest.raises(errors.NotFinite, match="edges of this prompt's graph are not finite"):
            attribute(
                freeze(replace(model, transcoders=transcoders), tokens), max_feature_nodes=limit
            )
