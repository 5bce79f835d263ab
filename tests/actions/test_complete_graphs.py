"""generate-graph on a complete replacement model: its document, traces, and what is kept."""

import json
import threading
import time
from dataclasses import replace

import pytest

import model_loader
from actions.answer import answer
from errors import Cancelled, DeadlineExceeded, InvalidInput, PromptTooLong
from tests.support.complete_worker import (
    N_CTX,
    N_LAYERS,
    forbidding_runs,
    forget_graphs,
    serving_complete,
)
from tests.support.demo_worker import (
    FORWARD,
    GRAPH,
    PROMPT,
    as_json,
    ask,
    demo_settings,
    without_times,
)
from tests.support.webapp_rules import Graph

TRACED = {**GRAPH, "enable_qk_tracing": True, "qk_top_fraction": 0.5, "qk_topk": 5}
WHOLE = {"node_threshold": 1, "edge_threshold": 1}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with serving_complete(tmp_path_factory.mktemp("complete"), token_limit=80) as served:
        yield served


@pytest.fixture
def settings(complete):
    forget_graphs(complete[1])
    return complete[0]


@pytest.fixture
def no_model(complete):
    with forbidding_runs(complete[1]) as forbid:
        yield forbid


def of_type(graph, kind):
    return [node for node in graph["nodes"] if node["feature_type"] == kind]


def traced(graph):
    return [node for node in graph["nodes"] if "qk_tracing_results" in node]


def test_the_document_is_valid_and_has_every_kind_of_node(settings):
    graph = ask({**GRAPH, **WHOLE}, settings)
    Graph.model_validate_json(json.dumps(graph))
    kinds = {node["feature_type"] for node in graph["nodes"]}
    assert kinds == {
        *("lorsa", "cross layer transcoder", "lorsa error", "mlp reconstruction error"),
        *("embedding", "logit"),
    }
    assert "qk_only_nodes" not in graph
    assert traced(graph) == []


def test_node_ids_are_unique_and_every_link_s_ends_are_nodes(settings):
    graph = ask({**GRAPH, **WHOLE}, settings)
    ids = {node["node_id"] for node in graph["nodes"]}
    assert len(ids) == len(graph["nodes"])
    assert {link[end] for link in graph["links"] for end in ("source", "target")} <= ids
    assert len(graph["links"]) > 100


def test_the_metadata_is_the_contract_s(settings, complete, monkeypatch):
    entry = replace(
        complete[1].entry, source_set="llamascope-2-8x", lorsa_source_set="llamascope-2-lorsa-8x"
    )
    monkeypatch.setattr(model_loader, "_loaded", replace(complete[1], entry=entry))
    metadata = ask({**TRACED, "user_id": "Ada", "batch_size": 16}, settings)["metadata"]
    assert set(metadata["info"].pop("timings_ms")) >= {"tokenise", "attribute", "trace", "prune"}
    assert metadata["info"].pop("create_time_ms") > 1_700_000_000_000
    scores = metadata.pop("graph_scores")
    assert all(0 <= score <= 1 for score in scores.values())
    assert list(scores) == ["replacement_score", "completeness_score"]
    assert metadata["schema_version"] == 1
    assert metadata["feature_details"] == {
        "neuronpedia_source_set": "llamascope-2-8x",
        "neuronpedia_lorsa_source_set": "llamascope-2-lorsa-8x",
    }
    assert metadata["generation_settings"] == {
        "max_n_logits": 10,
        "desired_logit_prob": 0.95,
        "batch_size": 16,
        "max_feature_nodes": 10_000,
        "enable_qk_tracing": True,
        "qk_top_fraction": 0.5,
        "qk_topk": 5,
        "attribution_method": "complete replacement model",
    }
    assert metadata["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.98}
    assert metadata["info"]["generator"]["name"] == "attribution-worker"
    assert metadata["info"]["generator"]["version"] == settings.worker_version
    assert metadata["info"]["creator_name"] == "Ada"


def test_without_tracing_the_metadata_says_nothing_of_it(settings):
    assert "qk" not in json.dumps(ask(GRAPH, settings)["metadata"])


def test_the_prompt_s_tokens_are_the_tokenizer_s_own_with_features_at_all(settings):
    graph = ask({**GRAPH, **WHOLE}, settings)
    assert graph["metadata"]["prompt_tokens"] == ["<|bos|>", "Michael", " Jordan", " joue", " au"]
    positions = {n["ctx_idx"] for n in of_type(graph, "lorsa")}
    assert positions == {n["ctx_idx"] for n in of_type(graph, "cross layer transcoder")}
    assert positions == set(range(5))


def test_traced_nodes_name_contributors_that_are_in_the_document(settings):
    graph = ask({**TRACED, **WHOLE}, settings)
    Graph.model_validate_json(json.dumps(graph))
    n_active = N_LAYERS * 5 * 4  # four at each of five positions
    assert {node["feature_type"] for node in traced(graph)} == {"lorsa"}
    assert 1 < len(traced(graph)) <= n_active / 2
    ids = {node["node_id"] for node in graph["nodes"]} | graph["qk_only_nodes"].keys()
    for node in traced(graph):
        for contributors in node["qk_tracing_results"].values():
            assert len(contributors) <= 5
            assert all(set(names) <= ids for *names, _ in contributors)
            values = [value for *_, value in contributors]
            assert values == sorted(values, reverse=True)
    assert "bias" in {node["feature_type"] for node in graph["qk_only_nodes"].values()}
    assert all("influence" not in node for node in graph["qk_only_nodes"].values())


def test_one_trace_at_least_is_made_and_the_fewest_contributors_are_one(settings):
    graph = ask({**TRACED, **WHOLE, "qk_top_fraction": 0.0001, "qk_topk": 1}, settings)
    [node] = traced(graph)
    assert all(len(entries) <= 1 for entries in node["qk_tracing_results"].values())


def test_tracing_changes_nothing_else_of_the_graph(settings):
    plain, with_traces = ask(GRAPH, settings), ask(TRACED, settings)
    for node in with_traces["nodes"]:
        node.pop("qk_tracing_results", None)
    assert with_traces["nodes"] == plain["nodes"]
    assert with_traces["links"] == plain["links"]


def test_other_thresholds_and_the_same_tracing_need_no_model(settings, no_model):
    first = ask(TRACED, settings)
    no_model()
    again = ask({**TRACED, **WHOLE, "slug_identifier": "again"}, settings)
    assert len(again["nodes"]) > len(first["nodes"])
    assert len(traced(again)) >= len(traced(first)) > 0
    assert traced(ask(GRAPH, settings)) == []


@pytest.mark.parametrize("fields", [{"qk_topk": 2}, {"qk_top_fraction": 0.1}])
def test_other_tracing_parameters_are_traced_anew_and_not_attributed_anew(
    settings, fields, monkeypatch
):
    ask(TRACED, settings)
    reported = []
    answered = answer(
        {**TRACED, **fields},
        model_loader.get_model(settings),
        settings,
        on_progress=lambda stage, *_: reported.append(stage),
    )
    again = as_json(answered)
    assert "trace" in reported
    assert "attribute" not in reported
    forget_graphs(model_loader.get_model(settings))
    assert without_times(again) == without_times(ask({**TRACED, **fields}, settings))


def test_a_graph_asked_for_without_tracing_first_is_traced_without_attributing_anew(settings):
    ask(GRAPH, settings)
    graph = ask(TRACED, settings)
    assert "attribute" not in graph["metadata"]["info"]["timings_ms"]
    assert traced(graph)


def test_a_traced_graph_larger_than_the_room_leaves_the_graph_itself_kept(settings, complete):
    ask(GRAPH, settings)
    loaded = complete[1]
    forget_graphs(loaded, int(loaded.graphs.kept.currsize))
    ask(TRACED, settings)
    again = ask(TRACED, settings)["metadata"]["info"]["timings_ms"]
    assert "attribute" not in again
    assert "trace" in again


def test_tracing_is_a_stage_of_its_own_in_the_progress(settings):
    reported = []
    answer(
        TRACED,
        model_loader.get_model(settings),
        settings,
        on_progress=lambda *report: reported.append(report),
    ).close()
    stages = list(dict.fromkeys(stage for stage, *_ in reported))
    assert stages == ["tokenise", "attribute", "trace", "prune", "encode"]
    shares = [share for _, share, _ in reported]
    assert shares == sorted(shares)
    assert any(
        words.endswith("attention heads") for stage, _, words in reported if stage == "trace"
    )


def test_a_cancelled_job_stops_while_it_traces_and_the_next_one_is_answered(settings):
    cancelled = threading.Event()

    def stop(stage, *_):
        if stage == "trace":
            cancelled.set()

    with pytest.raises(Cancelled):
        answer(TRACED, model_loader.get_model(settings), settings, cancelled, on_progress=stop)
    assert traced(ask(TRACED, settings))


def test_a_job_whose_deadline_has_passed_is_refused(settings):
    with pytest.raises(DeadlineExceeded):
        ask({**TRACED, "deadline": time.time() - 1}, settings)


def test_targets_replace_the_likeliest_tokens(settings):
    graph = ask({**GRAPH, "attribution_targets": [" tennis", " baloncesto"]}, settings)
    assert [node["token"] for node in of_type(graph, "logit")] == [" tennis", " baloncesto"]


def test_a_difference_and_features_of_both_kinds_are_targets(settings, complete):
    whole = ask({**GRAPH, **WHOLE}, settings)
    named = []
    for kind, letters in (("lorsa", "_lor_"), ("transcoder", "_cro_")):
        node = [n for n in whole["nodes"] if letters in n["node_id"] and n["layer"] > 0][-1]
        layer, _, index, position = node["node_id"].split("_")
        place = {"layer": int(layer), "index": int(index), "position": int(position)}
        named.append({**place, "kind": kind})
    targets = [{"plus": [" tennis"], "minus": [" baloncesto"]}, " tennis", *named]
    graph = ask({**TRACED, "attribution_targets": targets}, settings)
    Graph.model_validate_json(json.dumps(graph))
    logits, d_vocab = of_type(graph, "logit"), complete[1].d_vocab
    last = len(graph["metadata"]["prompt_tokens"]) - 1
    positions = [last, last, *(place["position"] for place in named)]
    assert [n["feature"] for n in logits][::2] == [d_vocab, d_vocab + 2]
    assert [n["ctx_idx"] for n in logits] == positions
    assert [n["node_id"] for n in logits] == [
        f"{N_LAYERS}_{n['feature']}_{n['ctx_idx']}" for n in logits
    ]
    assert [n["token"] for n in logits] == [
        " tennis -  baloncesto",
        " tennis",
        "layer {layer} lorsa feature {index} at {position}".format(**named[0]),
        "layer {layer} feature {index} at {position}".format(**named[1]),
    ]
    assert [f"(p={n['token_prob']:.3f})" in n["clerp"] for n in logits] == [True] * 4
    assert graph["metadata"]["attribution_targets"] == targets
    assert traced(graph)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"layer": N_LAYERS, "index": 0, "position": 1}, ["layer is", f"has {N_LAYERS} layers"]),
        (
            {"layer": 0, "index": 10**6, "position": 1},
            ["index is 1000000", "features in layer 0 (0 to"],
        ),
        (
            {"layer": 0, "index": 10**6, "position": 1, "kind": "lorsa"},
            ["index is 1000000", "features in layer 0 (0 to"],
        ),
        ({"layer": 0, "index": 0, "position": 10**6}, ["position is 1000000", "tokens (0 to"]),
    ],
)
def test_a_feature_that_there_is_not_is_refused_with_the_bound(settings, target, words):
    with pytest.raises(InvalidInput) as raised:
        ask({**GRAPH, "attribution_targets": [target]}, settings)
    message = str(raised.value)
    assert [word for word in ["attribution_targets[0].", *words] if word not in message] == []


def test_logits_are_the_forward_pass_s(settings):
    salient = ask(FORWARD, settings)["salient_logits"]
    logits = of_type(ask(GRAPH, settings), "logit")
    assert [n["feature"] for n in logits] == [s["token_id"] for s in salient]
    assert [n["token_prob"] for n in logits] == pytest.approx([s["probability"] for s in salient])


def test_max_feature_nodes_bounds_the_features(settings):
    graph = ask({**GRAPH, **WHOLE, "max_feature_nodes": 7}, settings)
    features = of_type(graph, "lorsa") + of_type(graph, "cross layer transcoder")
    assert 0 < len(features) <= 7


def test_a_prompt_longer_than_the_lorsas_context_is_refused(settings):
    with pytest.raises(PromptTooLong, match=f"the model's context is {N_CTX}"):
        ask({**GRAPH, "prompt": "a " * (N_CTX + 6)}, settings)


def test_tracing_is_refused_where_the_set_has_no_attention_features(monkeypatch):
    monkeypatch.setattr(model_loader, "_loaded", None)
    with pytest.raises(InvalidInput, match=r"enable_qk_tracing is true, but .*demo/transcoders"):
        ask({**GRAPH, "enable_qk_tracing": True}, demo_settings())
    assert ask({**GRAPH, "enable_qk_tracing": False, "qk_topk": 3}, demo_settings())["nodes"]


def test_a_chat_is_parsed_with_no_position_that_cannot_be_steered(settings):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    graph = ask({**GRAPH, "prompt": None, "messages": messages}, settings)["metadata"]
    parsed = ask({"action": "parse-chat-prompt", "prompt": graph["prompt"]}, settings)
    assert parsed["messages"] == messages
    assert parsed["unsteerable_positions"] == []
    again = ask({**FORWARD, "prompt": parsed["prompt"]}, settings)
    assert again["input_tokens"] == graph["prompt_tokens"]


def test_the_slug_is_made_of_the_prompt_s_words(settings):
    body = {key: value for key, value in GRAPH.items() if key != "slug_identifier"}
    assert ask(body, settings)["metadata"]["slug"].startswith("michael-jordan-joue-au-")
    assert PROMPT in ask(body, settings)["metadata"]["prompt"]
