"""What `/metrics` counts, in the form that Prometheus reads."""

from types import SimpleNamespace

import pytest
import requests
import torch
from prometheus_client.parser import text_string_to_metric_families

from model_loader import get_model
from serving.identity import identify
from serving.metrics import Metrics
from tests.support.demo_worker import demo_settings, forget_graphs
from tests.support.http_server import (
    FORWARD,
    GRAPH,
    PARSE,
    STEER,
    assert_error,
    get,
    post,
    serving,
)
from tools.documents import rows


@pytest.fixture
def server():
    with serving() as running:
        yield running


def samples(server):
    """The value of each sample by name and labels, as Prometheus reads them."""
    families = text_string_to_metric_families(get(server, "/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_jobs_are_counted_by_action_and_by_how_they_ended(server):
    post(server, "forward-pass", FORWARD)
    post(server, "forward-pass", FORWARD)
    post(server, "forward-pass", {**FORWARD, "max_n_logits": 0})
    post(server, "parse-chat-prompt", PARSE)
    post(server, "parse-chat-prompt", [])
    with get_model(demo_settings()).lock:
        assert_error(post(server, "steer", STEER), 503, "busy")
    read = samples(server)
    jobs = {key[1:]: value for key, value in read.items() if key[0] == "attribution_jobs_total"}
    assert jobs == {
        ("done", "forward-pass"): 2,
        ("forward-pass", "invalid_input"): 1,
        ("done", "parse-chat-prompt"): 1,
        ("invalid_input", "parse-chat-prompt"): 1,
        ("busy", "steer"): 1,
    }
    assert read["attribution_job_seconds_count", "forward-pass"] == 3
    assert ("attribution_job_seconds_count", "steer") not in read


def test_stages_waits_and_the_cache_are_measured(server):
    forget_graphs()
    post(server, "generate-graph", GRAPH)
    post(server, "generate-graph", {**GRAPH, "node_threshold": 0.5})
    read = samples(server)
    stages = {key[1] for key in read if key[0] == "attribution_stage_seconds_count"}
    assert stages == {"tokenise", "attribute", "prune", "encode"}
    assert read["attribution_stage_seconds_count", "attribute"] == 1
    assert read["attribution_stage_seconds_count", "prune"] == 2
    assert read["attribution_stage_seconds_sum", "attribute"] > 0
    assert read["attribution_queue_seconds_count",] == 1  # the second needed no model
    assert read["attribution_graph_cache_requests_total", "hit"] == 1
    assert read["attribution_graph_cache_requests_total", "miss"] == 1
    held = get_model(demo_settings()).graphs.kept.currsize
    assert read["attribution_graph_cache_bytes",] == held > 0
    assert read["process_resident_memory_bytes",] > 10**8


def test_the_worker_is_named_and_a_cpu_has_no_device_memory(server):
    health = get(server, "/health").json()
    read = samples(server)
    [info] = [key for key in read if key[0] == "attribution_worker_info"]
    assert {health[name] for name in ("version", "model", "transcoders", "dtype")} <= set(info)
    assert not [key for key in read if key[0] == "attribution_device_memory_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_a_gpu_is_read_from_torch():
    weights = torch.ones(1000, device="cuda")
    loaded = SimpleNamespace(
        model=SimpleNamespace(cfg=SimpleNamespace(device="cuda")),
        graphs=get_model(demo_settings()).graphs,
    )
    identity = identify(get_model(demo_settings()), demo_settings())
    text, _ = Metrics().exposition(loaded, identity, "")
    memory = {
        sample.labels["kind"]: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == "attribution_device_memory_bytes"
    }
    assert weights.nbytes <= memory["allocated"] <= memory["reserved"] < memory["total"]
    assert memory["allocated"] <= memory["peak"]
    assert 0 < memory["free"] < memory["total"]


def test_two_servers_of_one_process_count_apart(server):
    with serving() as other:
        post(other, "forward-pass", FORWARD)
        assert samples(other)["attribution_jobs_total", "done", "forward-pass"] == 1
    assert ("attribution_jobs_total", "done", "forward-pass") not in samples(server)


def test_the_metrics_ask_for_the_secret_where_there_is_one(server):
    assert get(server, "/metrics").headers["Content-Type"].startswith("text/plain; version=")
    with serving(secret="s") as guarded:
        assert_error(get(guarded, "/metrics"), 401, "unauthorized")
        assert_error(post(guarded, "steer", STEER), 401, "unauthorized")
        answer = requests.get(f"{guarded.url}/metrics", headers={"x-secret-key": "s"}, timeout=60)
        assert answer.status_code == 200
        assert 'code="unauthorized"' in answer.text


def test_the_table_of_the_documents_has_every_metric_with_its_labels_and_meaning():
    registry = Metrics().registry
    table = rows("docs/http.md", "metric")
    families = {
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, ""): family
        for family in registry.collect()
        if family.name.startswith("attribution_")
    }
    assert set(table) == set(families)
    for name, family in families.items():
        labels, meaning = table[name]
        assert meaning == family.documentation
        if family.type != "info":
            used = registry._names_to_collectors[family.name]._labelnames
            assert labels == (", ".join(f"`{label}`" for label in used) or "none")
