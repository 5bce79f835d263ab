"""After any failing job on a complete model the next one is answered as before it, bit for bit."""

import sys
import threading
import time

import pytest
import torch

import attribution.expansion
import model_loader
from attribution import complete
from errors import Cancelled, DeadlineExceeded, Internal, OutOfMemory, WorkerError
from graphs import complete_nodes
from graphs import document as graph_document
from prompting import prompts
from tests.support.complete_sets import module_folder
from tests.support.complete_worker import complete_settings, forget_graphs, serving_complete
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, PROMPT, ask, comparable

SMALL = {**GRAPH, "max_feature_nodes": 40}  # it is asked for after every test
TRACED = {**SMALL, "enable_qk_tracing": True, "qk_top_fraction": 0.5, "qk_topk": 5}
# Distinct from those, so that no kept attribution answers for it.
OTHER = {**TRACED, "prompt": "Rafael Nadal juega al", "max_n_logits": 3}
UPLOADED = {**OTHER, "signed_url": "http://127.0.0.1:1/key?X-Amz-Signature=feed"}
GOOD = [SMALL, TRACED, FORWARD, PARSE]
BAD = [
    {**TRACED, "qk_topk": 0},
    {**TRACED, "qk_topk": 10**9},
    {**TRACED, "qk_top_fraction": 0},
    {**TRACED, "prompt": "a " * 80},
    {**TRACED, "attribution_targets": ["not one token"]},
    {**TRACED, "max_n_logits": 10**6},
    {**TRACED, "deadline": 5},
]


@pytest.fixture(scope="module")
def complete_worker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("complete")
    allowed = {"upload_allowed_hosts": ("127.0.0.1",)}
    with serving_complete(directory, **allowed) as served:
        yield served


@pytest.fixture(scope="module")
def before(complete_worker):
    """What the good requests are answered by a worker that nothing has gone wrong in."""
    return [comparable(ask(body, complete_worker[0])) for body in GOOD]


@pytest.fixture
def loaded(complete_worker):
    return complete_worker[1]


@pytest.fixture(autouse=True)
def settings(complete_worker, before):
    """The settings; whatever a test did, good requests are answered as before."""
    chosen, loaded = complete_worker
    forget_graphs(loaded)
    yield chosen
    forget_graphs(loaded)
    assert [comparable(ask(body, chosen)) for body in GOOD] == before


def test_refused_requests_leave_nothing_behind(settings):
    for body in BAD:
        with pytest.raises(WorkerError) as raised:
            ask(body, settings)
        assert raised.value.code not in {"internal", "out_of_memory"}


# Where a fault strikes: a function of the code, or in the language model.
FAULTS = {
    "tokenise": (prompts, "tokenize"),
    "freeze, the model": None,
    "freeze, a module": (sys.modules["attribution.complete.freezing"], "_frozen"),
    "freeze, the sources": (sys.modules["attribution.complete.freezing"], "_sorted_sources"),
    "rows": (sys.modules["attribution.complete.attribute"], "attribution_rows"),
    "the matrix": (attribution.expansion.Expansion, "_adjacency"),
    "trace, which": (sys.modules["attribution.complete.tracing"], "_traced_features"),
    "trace, the lists": (sys.modules["attribution.complete.tracing"], "_largest"),
    "trace, the names": (sys.modules["attribution.complete.tracing"], "_named"),
    "prune": (complete, "prune"),
    "document, nodes": (complete_nodes, "_node"),
    "document, traces": (complete_nodes, "_results"),
    "document, links": (graph_document, "_link_chunks"),
    "document, qk_only_nodes": (graph_document, "_qk_only_chunks"),
    "upload": (sys.modules["delivery.upload"], "put"),
}


@pytest.fixture(params=FAULTS)
def inject(request, monkeypatch, loaded):
    """Put an exception where the parameter says, and return the request that meets it."""
    place, handles = FAULTS[request.param], []

    def put_in(exception):
        def fail(*_arguments, **_named):
            raise exception

        if place is None:
            block = loaded.model.language_model.blocks[2]
            handles.append(block.register_forward_pre_hook(fail))
        else:
            monkeypatch.setattr(*place, fail)
        return UPLOADED if request.param == "upload" else OTHER

    yield put_in
    for handle in handles:
        handle.remove()
    monkeypatch.undo()


def test_an_exception_in_any_stage_is_internal_and_tells_nothing(inject, settings):
    body = inject(ValueError(f"{PROMPT} https://store/key?X-Amz-Signature=feed"))
    with pytest.raises(Internal) as raised:
        ask(body, settings)
    assert "feed" not in str(raised.value)
    assert PROMPT not in str(raised.value)
    assert raised.value.__cause__ is None


def test_out_of_memory_in_any_stage_names_what_to_lower(inject, settings):
    body = inject(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(OutOfMemory, match="max_feature_nodes"):
        ask(body, settings)


@pytest.mark.parametrize("what", ["cancelled", "deadline"])
def test_a_job_stops_after_the_pass_in_which_it_is_no_longer_wanted(
    what, settings, loaded, pass_the_deadline
):
    cancelled, body = threading.Event(), {**OTHER, "deadline": time.time() + 600}
    stop = {"cancelled": lambda *_: cancelled.set(), "deadline": pass_the_deadline}[what]
    handle = loaded.model.language_model.blocks[0].register_forward_pre_hook(stop)
    try:
        with pytest.raises(DeadlineExceeded if what == "deadline" else Cancelled):
            ask(body, settings, cancelled)
    finally:
        handle.remove()
    assert not loaded.lock.locked()
    assert len(loaded.graphs.kept) == 0


def test_a_graph_whose_trace_failed_is_kept_and_traced_by_the_next_job(settings, monkeypatch):
    def fail(*_arguments, **_named):
        raise RuntimeError("broken")

    monkeypatch.setattr(sys.modules["attribution.complete.tracing"], "_largest", fail)
    with pytest.raises(Internal):
        ask(OTHER, settings)
    monkeypatch.undo()
    again = ask(OTHER, settings)["metadata"]["info"]["timings_ms"]
    assert "attribute" not in again
    assert "trace" in again


def test_numbers_that_overflow_say_so_and_the_next_job_is_answered(settings, loaded):
    weight = loaded.model.language_model.blocks[1].mlp.W_out
    whole = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    try:
        for body in (OTHER, FORWARD):
            with pytest.raises(WorkerError) as raised:
                ask(body, settings)
            assert raised.value.code == "not_finite"
    finally:
        with torch.no_grad():
            weight.copy_(whole)


def test_a_decoder_file_that_turns_bad_under_way_fails_graphs_until_it_is_whole(
    tmp_path, monkeypatch
):
    chosen = complete_settings(tmp_path, lazy_decoder=True)
    monkeypatch.setattr(model_loader, "_loaded", model_loader.load(chosen))
    first = [comparable(ask(body, chosen)) for body in GOOD]
    forget_graphs(model_loader.get_model(chosen))
    path = module_folder(tmp_path / "set", "lorsa", 2) / "sae_weights.safetensors"
    whole = path.rename(tmp_path / "whole")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for body in (SMALL, TRACED):
        with pytest.raises(Internal):
            ask(body, chosen)
    assert ask(FORWARD, chosen) == first[GOOD.index(FORWARD)]
    whole.rename(path)
    assert [comparable(ask(body, chosen)) for body in GOOD] == first
