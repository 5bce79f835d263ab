"""generate-graph with `format: "pt"`: circuit-tracer's own file, uploaded or as the answer."""

import gzip
import hashlib
import threading
import time

import circuit_tracer
import pytest
import torch
from circuit_tracer.graph import Graph

from actions import answer as front
from actions.answer import answer
from delivery import Spooled
from errors import Cancelled, DeadlineExceeded, InvalidInput, UploadFailed
from graphs import torch_file
from model_loader import get_model
from tests.support.complete_worker import serving_complete
from tests.support.demo_worker import GRAPH, ask, demo_settings, forget_graphs
from tests.support.same_graph import assert_agree

SETTINGS = demo_settings(upload_allowed_hosts=("127.0.0.1",))
FILE = {**GRAPH, "format": "pt"}
DIFFERENCE = {"plus": [" basket"], "minus": [" tennis"]}


@pytest.fixture(autouse=True)
def _nothing_kept():
    forget_graphs()


def file_of(body, **options):
    """The response to a job at a door that can answer with a file."""
    response = answer(body, get_model(SETTINGS), SETTINGS, takes_files=True, **options)
    assert isinstance(response, Spooled)
    return response


def read(content, path):
    path.write_bytes(content)
    return Graph.from_pt(str(path))


def read_file_of(body, path):
    with file_of(body) as response:
        return read(b"".join(response.chunks()), path)


def library_graph(directory, body):
    """What circuit-tracer itself saves for the prompt of a job, with the worker's settings."""
    graph = circuit_tracer.attribute(
        body["prompt"],
        get_model(SETTINGS).model,
        batch_size=48,
        max_feature_nodes=body.get("max_feature_nodes", 10_000),
    )
    graph.to_pt(str(directory / "library.pt"))
    return Graph.from_pt(str(directory / "library.pt"))


@pytest.mark.parametrize("fields", [{}, {"max_feature_nodes": 60}], ids=["all", "ranked"])
def test_the_file_is_what_circuit_tracer_s_own_attribution_saves(tmp_path, fields):
    ours = read_file_of({**FILE, **fields}, tmp_path / "ours.pt")
    theirs = library_graph(tmp_path, {**FILE, **fields})
    assert_agree(ours, theirs)
    assert (ours.cfg, ours.input_string) == (theirs.cfg, theirs.input_string)


def test_the_file_has_the_graph_s_name_and_the_type_of_a_file():
    with file_of(FILE) as named, file_of({**FILE, "slug_identifier": None}) as unnamed:
        assert (named.file_name, named.media_type) == ("test.pt", "application/octet-stream")
        assert unnamed.file_name.startswith("michael-jordan-joue-au-")
        assert unnamed.file_name.endswith(".pt")


def test_thresholds_prune_nothing_of_the_file(tmp_path):
    whole = read_file_of(FILE, tmp_path / "whole.pt")
    strict = read_file_of(
        {**FILE, "node_threshold": 0.1, "edge_threshold": 0.1}, tmp_path / "strict.pt"
    )
    assert torch.equal(whole.adjacency_matrix, strict.adjacency_matrix)
    assert len(whole.adjacency_matrix) > len(ask(GRAPH)["nodes"])


def test_targets_of_all_kinds_are_in_the_file_with_indices_past_the_vocabulary(tmp_path):
    targets = [DIFFERENCE, " tennis", {"layer": 2, "index": 157, "position": 4}]
    graph = read_file_of({**FILE, "attribution_targets": targets}, tmp_path / "graph.pt")
    d_vocab = get_model(SETTINGS).d_vocab
    nodes = ask({**GRAPH, "attribution_targets": targets})["nodes"]
    logits = [node for node in nodes if node["feature_type"] == "logit"]
    assert [target.vocab_idx for target in graph.logit_targets] == [n["feature"] for n in logits]
    assert [graph.logit_targets[n].vocab_idx for n in (0, 2)] == [d_vocab, d_vocab + 2]
    probabilities = [node["token_prob"] for node in logits]
    assert graph.logit_probabilities.tolist() == pytest.approx(probabilities)
    assert graph.logit_targets[0].token_str == " basket -  tennis"


@pytest.mark.parametrize("compress", [False, True])
def test_an_uploaded_file_is_what_its_receipt_says(store, tmp_path, compress):
    key = f"graph-{compress}.pt"
    receipt = ask({**FILE, "signed_url": store.presign(key), "compress": compress}, SETTINGS)
    stored, headers = store.get(key)
    assert (receipt["success"], receipt["format"]) == ("Graph uploaded", "pt")
    assert receipt["url"] == f"{store.url}/graphs/{key}"
    assert receipt["bytes"] == len(stored)
    assert receipt["sha256"] == hashlib.sha256(stored).hexdigest()
    assert receipt["compressed"] is compress
    assert headers["content-type"] == "application/octet-stream"
    assert headers.get("content-encoding") == ("gzip" if compress else None)
    graph = read(gzip.decompress(stored) if compress else stored, tmp_path / "graph.pt")
    assert receipt["num_nodes"] == len(graph.adjacency_matrix)
    assert receipt["num_links"] == int(graph.adjacency_matrix.count_nonzero())
    assert receipt["num_tokens"] == graph.n_pos == 5
    assert set(receipt["timings_ms"]) == {"tokenise", "attribute", "encode", "upload"}


def test_the_receipt_of_a_json_document_says_no_format(store):
    assert "format" not in ask({**GRAPH, "signed_url": store.presign("graph.json")}, SETTINGS)


def test_a_content_type_that_was_signed_is_sent(store):
    url = store.presign("typed.pt", ContentType="application/zip")
    ask(
        {**FILE, "signed_url": url, "signed_headers": {"Content-Type": "application/zip"}}, SETTINGS
    )
    assert store.get("typed.pt")[1]["content-type"] == "application/zip"


def test_an_attribution_that_is_kept_serves_both_formats(tmp_path, model_runs):
    first = read_file_of(FILE, tmp_path / "first.pt")
    assert len(model_runs) > 0
    runs = len(model_runs)
    again = read_file_of({**FILE, "node_threshold": 0.5}, tmp_path / "again.pt")
    document = ask(GRAPH)
    assert len(model_runs) == runs
    assert torch.equal(first.adjacency_matrix, again.adjacency_matrix)
    forget_graphs()
    assert {**document, "metadata": None} == {**ask(GRAPH), "metadata": None}
    runs = len(model_runs)
    third = read_file_of(FILE, tmp_path / "third.pt")
    assert len(model_runs) == runs
    assert torch.equal(first.adjacency_matrix, third.adjacency_matrix)


def test_a_file_whose_upload_failed_is_uploaded_to_a_fresh_url_without_the_model(store, model_runs):
    wrong = store.presign("kept.pt").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(UploadFailed, match="the attribution is kept"):
        ask({**FILE, "signed_url": wrong}, SETTINGS)
    runs = len(model_runs)
    ask({**FILE, "signed_url": store.presign("kept.pt")}, SETTINGS)
    assert len(model_runs) == runs


def test_where_outputs_are_json_a_file_is_refused_before_the_model_runs(model_runs):
    with pytest.raises(InvalidInput, match=r'format is "pt".* JSON; .*signed_url'):
        ask(FILE, SETTINGS)
    assert model_runs == []


def test_a_complete_replacement_model_has_no_such_file(tmp_path, store):
    with serving_complete(tmp_path, upload_allowed_hosts=("127.0.0.1",)) as (settings, loaded):
        body = {**FILE, "signed_url": store.presign("complete.pt")}
        with pytest.raises(InvalidInput, match=r'format is "pt".*complete.*json'):
            ask(body, settings)
        with pytest.raises(InvalidInput, match=r'format is "pt".*complete.*json'):
            answer(FILE, loaded, settings, takes_files=True)


@pytest.mark.parametrize("value", ["npz", "PT", 1, ["pt"]])
def test_another_format_is_refused(value):
    with pytest.raises(InvalidInput, match="format: input should be 'json' or 'pt'"):
        ask({**GRAPH, "format": value})


def test_the_other_format_by_name_is_the_default(tmp_path):
    named, default = ask({**GRAPH, "format": "json"}), ask(GRAPH)
    assert named["links"] == default["links"]


@pytest.fixture
def stopped_while_writing(monkeypatch):
    """What is to happen once the file is being written, in front of its next check."""
    original, happens = torch_file.save, []

    def save(graph, file):
        file.write(b"a beginning")
        happens[0]()
        original(graph, file)

    monkeypatch.setattr(torch_file, "save", save)
    return happens


def test_a_job_that_is_cancelled_while_its_file_is_written_ends(stopped_while_writing):
    cancelled = threading.Event()
    stopped_while_writing.append(cancelled.set)
    with pytest.raises(Cancelled):
        file_of(FILE, cancelled=cancelled)


def test_a_deadline_that_passes_while_the_file_is_written_ends_the_job(
    stopped_while_writing, monkeypatch
):
    now = time.time()
    later = threading.Event()
    stopped_while_writing.append(later.set)
    monkeypatch.setattr("actions.job.time.time", lambda: now + (100 if later.is_set() else 0))
    with pytest.raises(DeadlineExceeded):
        file_of({**FILE, "deadline": now + 50})


def test_the_log_line_has_the_graph_s_sizes(caplog):
    caplog.set_level("INFO", logger=front.__name__)
    with file_of(FILE):
        pass
    event = caplog.records[-1].event
    assert event["nodes"] > 100
    assert event["links"] > event["nodes"]
