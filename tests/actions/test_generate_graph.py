"""generate-graph on the demo model: the document, its ids, its options and its refusals."""

import json
import math
from dataclasses import asdict, replace

import pytest

import model_loader
from attribution.provenance import circuit_tracer_in_use
from errors import InvalidInput, ModelNotLoaded, PromptTooLong
from model_loader import get_model
from tests.support.demo_worker import FORWARD, GRAPH, PROMPT, ask, demo_settings, forget_graphs


@pytest.fixture(scope="module")
def graph():
    return ask(GRAPH)


def features(graph):
    return [n for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"]


def of_type(graph, kind):
    return [n for n in graph["nodes"] if n["feature_type"] == kind]


def test_every_node_id_is_unique_and_every_link_s_ends_are_nodes(graph):
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    ends = {link[end] for link in graph["links"] for end in ("source", "target")}
    assert ends <= set(ids)
    assert len(graph["links"]) > 20


def test_ids_stay_unique_where_the_library_s_collide():
    """Its error ids, 0_layer_position, are those of layer-0 features of index `layer`."""
    prompt = "El deporte de Cristiano Ronaldo es el"
    graph = ask({**GRAPH, "prompt": prompt, "node_threshold": 1, "edge_threshold": 1})
    library_error_ids = {
        f"0_{n['layer']}_{n['ctx_idx']}" for n in of_type(graph, "mlp reconstruction error")
    }
    clashing = library_error_ids & {n["node_id"] for n in features(graph)}
    assert clashing
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)


def test_the_metadata_says_what_was_asked_and_of_what(graph):
    metadata = graph["metadata"]
    assert metadata["slug"] == "test"
    assert metadata["scan"] == "demo"
    assert metadata["prompt_tokens"][1:] == ["Michael", " Jordan", " joue", " au"]
    assert metadata["prompt"].endswith(PROMPT)
    assert metadata["node_threshold"] == 0.8
    assert metadata["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.98}
    settings = metadata["generation_settings"]
    assert {k: settings[k] for k in ("max_n_logits", "batch_size", "update_interval")} == {
        "max_n_logits": 10,
        "batch_size": 48,
        "update_interval": 4,
    }
    assert settings["max_feature_nodes"] == 10_000
    assert 0 < metadata["graph_scores"]["replacement_score"] < 1
    assert 0 < metadata["graph_scores"]["completeness_score"] < 1
    assert "/" not in metadata["info"]["transcoder_set"].removeprefix("demo/")


def test_the_metadata_credits_the_circuit_tracer_in_use(graph):
    credited = graph["metadata"]["info"]["generator"]
    assert credited == asdict(circuit_tracer_in_use())
    assert credited["version"][0].isdigit()


@pytest.fixture
def source_set(monkeypatch):
    """The demo model, as if Neuronpedia had its transcoders under this name."""
    loaded = get_model(demo_settings())
    entry = replace(loaded.entry, source_set="4-demo")
    monkeypatch.setattr(model_loader, "_loaded", replace(loaded, entry=entry))
    return "4-demo"


def test_the_metadata_is_the_contract_s(source_set):
    metadata = ask({**GRAPH, "user_id": "Ada"})["metadata"]
    assert metadata["info"].pop("create_time_ms") > 1_700_000_000_000
    assert set(metadata["info"].pop("timings_ms")) >= {"tokenise", "prune"}
    scores = metadata.pop("graph_scores")
    assert list(scores) == ["replacement_score", "completeness_score"]
    assert metadata == {
        "slug": "test",
        "scan": "demo",
        "transcoder_list": [],
        "prompt_tokens": ["<|bos|>", "Michael", " Jordan", " joue", " au"],
        "prompt": f"<|bos|>{PROMPT}",
        "node_threshold": 0.8,
        "schema_version": 1,
        "info": {
            "creator_name": "Ada",
            "creator_url": "https://www.neuronpedia.org",
            "source_urls": [f"https://neuronpedia.org/demo/{source_set}"],
            "transcoder_set": "demo/transcoders",
            "generator": asdict(circuit_tracer_in_use()),
        },
        "generation_settings": {
            "max_n_logits": 10,
            "desired_logit_prob": 0.95,
            "batch_size": 48,
            "max_feature_nodes": 10_000,
            "update_interval": 4,
            "attribution_method": "explicit sweep",
        },
        "pruning_settings": {"node_threshold": 0.8, "edge_threshold": 0.98},
        "feature_details": {"neuronpedia_source_set": source_set},
    }


def test_what_is_unknown_is_left_out_and_not_null(graph):
    """The webapp's schema has strings there, and refuses null."""
    assert "feature_details" not in graph["metadata"]
    assert "null" not in json.dumps(graph["metadata"])


def test_query_parameters_start_empty(graph):
    assert graph["qParams"] == {
        "pinnedIds": [],
        "supernodes": [],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }


def test_logit_nodes_are_the_forward_pass_s_salient_logits(graph):
    salient = ask(FORWARD)["salient_logits"]
    logits = of_type(graph, "logit")
    assert [n["feature"] for n in logits] == [s["token_id"] for s in salient]
    assert [n["token_prob"] for n in logits] == pytest.approx([s["probability"] for s in salient])
    assert [n["is_target_logit"] for n in logits] == [True] + [False] * (len(logits) - 1)
    assert all(n["layer"] == "5" for n in logits)


def test_the_answer_is_the_fact(graph):
    assert ' basket"' in of_type(graph, "logit")[0]["clerp"]


def test_every_token_of_the_prompt_has_its_node(graph):
    tokens = of_type(graph, "embedding")
    assert [n["ctx_idx"] for n in tokens] == list(range(5))
    assert all(n["layer"] == "E" for n in tokens)


def test_feature_ids_say_layer_index_position_and_feature_pairs_layer_and_index(graph):
    for node in features(graph):
        layer, index, position = map(int, node["node_id"].split("_"))
        assert (str(layer), position) == (node["layer"], node["ctx_idx"])
        assert node["feature"] == (layer + index) * (layer + index + 1) // 2 + index
        assert node["activation"] > 0


def test_the_document_has_no_number_that_json_lacks(graph):
    def numbers(value):
        if isinstance(value, dict):
            for inner in value.values():
                yield from numbers(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from numbers(inner)
        elif isinstance(value, float):
            yield value

    assert all(math.isfinite(number) for number in numbers(graph))
    json.dumps(graph, allow_nan=False)


def test_lower_thresholds_keep_less():
    strict = ask({**GRAPH, "node_threshold": 0.5, "edge_threshold": 0.8})
    loose = ask({**GRAPH, "node_threshold": 0.9, "edge_threshold": 0.99})
    assert len(strict["nodes"]) < len(loose["nodes"])
    assert len(strict["links"]) < len(loose["links"])


@pytest.mark.parametrize("threshold", [0, 1])
def test_the_extreme_thresholds_give_whole_graphs(threshold):
    graph = ask({**GRAPH, "node_threshold": threshold, "edge_threshold": threshold})
    assert len(of_type(graph, "embedding")) == 5


def test_max_feature_nodes_bounds_the_features():
    graph = ask({**GRAPH, "max_feature_nodes": 7, "node_threshold": 1, "edge_threshold": 1})
    assert 0 < len(features(graph)) <= 7


def test_targets_replace_the_likeliest_tokens():
    graph = ask({**GRAPH, "attribution_targets": [" tennis", " baloncesto"]})
    assert [n["clerp"].split('"')[1] for n in of_type(graph, "logit")] == [" tennis", " baloncesto"]


def active_feature(graph, n=0):
    """One of the graph's features above the first layer, as a target."""
    layer, index, position = [f for f in features(graph) if int(f["layer"]) > 1][n][
        "node_id"
    ].split("_")
    return {"layer": int(layer), "index": int(index), "position": int(position)}


DIFFERENCE = {"plus": [" basket"], "minus": [" tennis"]}
MEANS = {"plus": [" basket", " baloncesto"], "minus": [" tennis", " football", " fútbol"]}


def test_targets_of_all_kinds_are_logit_nodes_with_indices_past_the_vocabulary(graph):
    feature = active_feature(graph)
    targets = [DIFFERENCE, " tennis", feature, MEANS]
    mixed = ask({**GRAPH, "attribution_targets": targets})
    logits, d_vocab = of_type(mixed, "logit"), get_model(demo_settings()).d_vocab
    [tennis] = of_type(ask({**GRAPH, "attribution_targets": [" tennis"]}), "logit")
    assert [n["feature"] for n in logits] == [d_vocab, tennis["feature"], d_vocab + 2, d_vocab + 3]
    layer, at = tennis["layer"], feature["position"]
    assert [n["node_id"] for n in logits] == [
        f"{layer}_{d_vocab}_4",
        tennis["node_id"],
        f"{layer}_{d_vocab + 2}_{at}",
        f"{layer}_{d_vocab + 3}_4",
    ]
    assert [n["ctx_idx"] for n in logits] == [4, 4, at, 4]
    assert [n["layer"] for n in logits] == [layer] * 4
    assert [n["clerp"].split('"')[1] for n in logits] == [
        " basket -  tennis",
        " tennis",
        f"layer {feature['layer']} feature {feature['index']} at {at}",
        "mean[ basket,  baloncesto] - mean[ tennis,  football,  fútbol]",
    ]
    for node in logits:
        assert node["clerp"].startswith('Output "')
        assert node["clerp"].endswith(f'" (p={node["token_prob"]:.3f})')
    assert [n["is_target_logit"] for n in logits] == [True, False, False, False]
    assert mixed["metadata"]["attribution_targets"] == targets
    ids = [node["node_id"] for node in mixed["nodes"]]
    assert len(set(ids)) == len(ids)


def test_weights_are_probabilities_their_differences_and_one(graph):
    feature = active_feature(graph)
    tokens = [*MEANS["plus"], *MEANS["minus"]]
    of_tokens, mixed = (
        [n["token_prob"] for n in of_type(ask({**GRAPH, "attribution_targets": t}), "logit")]
        for t in (tokens, [tokens[0], DIFFERENCE, MEANS, feature])
    )
    basket, baloncesto, tennis, *others = of_tokens
    means = (basket + baloncesto) / 2 - (tennis + sum(others)) / 3
    expected = [basket, abs(basket - tennis), abs(means), 1.0]
    assert mixed == pytest.approx(expected, abs=1e-6)


def test_a_feature_s_graph_has_the_links_that_lead_to_the_feature(graph):
    whole = ask({**GRAPH, "node_threshold": 1, "edge_threshold": 1})
    target = active_feature(whole, -1)
    name = f"{target['layer']}_{target['index']}_{target['position']}"
    into = {(link["source"], link["weight"]) for link in whole["links"] if link["target"] == name}

    asked = {**GRAPH, "attribution_targets": [target], "node_threshold": 1, "edge_threshold": 1}
    own = ask(asked)

    [logit] = of_type(own, "logit")
    links = {
        link["source"]: link["weight"]
        for link in own["links"]
        if link["target"] == logit["node_id"]
    }
    assert len(into) > 10
    for source, weight in into:
        assert links[source] == pytest.approx(weight, rel=1e-4, abs=1e-6)
    for node in features(own):
        assert int(node["layer"]) < target["layer"]
        assert node["ctx_idx"] <= target["position"]
    assert 0 < own["metadata"]["graph_scores"]["replacement_score"] <= 1


@pytest.fixture
def same_column():
    """Two tokens of the demo model that its unembedding doesn't tell apart."""
    model, token_text = get_model(demo_settings()).model, get_model(demo_settings()).token_text
    one, other = (token_text.id_of(token) for token in (" basket", " tennis"))
    kept = model.unembed.W_U[:, other].clone()
    model.unembed.W_U.data[:, other] = model.unembed.W_U[:, one]
    yield
    model.unembed.W_U.data[:, other] = kept
    forget_graphs()


@pytest.mark.usefixtures("same_column")
def test_a_difference_that_nothing_can_move_is_refused(graph):
    forget_graphs()
    with pytest.raises(InvalidInput, match=r"attribution_targets: nothing .* moves any of them"):
        ask({**GRAPH, "attribution_targets": [DIFFERENCE]})
    beside = ask({**GRAPH, "attribution_targets": [DIFFERENCE, active_feature(graph)]})
    assert len(of_type(beside, "logit")) == 2


def test_the_likeliest_tokens_are_no_request_for_targets(graph):
    assert "attribution_targets" not in graph["metadata"]


def test_without_a_slug_one_is_made_from_prompt_and_time():
    body = {key: value for key, value in GRAPH.items() if key != "slug_identifier"}
    assert ask(body)["metadata"]["slug"].startswith("michael-jordan-joue-au-")


def test_the_user_is_the_creator():
    assert ask({**GRAPH, "user_id": "Ada"})["metadata"]["info"]["creator_name"] == "Ada"


def test_messages_are_rendered_and_a_bos_already_there_is_not_doubled(graph):
    again = ask({**GRAPH, "prompt": graph["metadata"]["prompt"]})
    assert again["metadata"]["prompt_tokens"] == graph["metadata"]["prompt_tokens"]
    chat = ask({**GRAPH, "prompt": None, "messages": [{"role": "user", "content": "Hi"}]})
    assert chat["metadata"]["prompt_tokens"][0] == graph["metadata"]["prompt_tokens"][0]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"prompt": "a " * 80}, PromptTooLong, ["tokens, the limit is 64"]),
        ({"model_id": "google/gemma-2-2b"}, ModelNotLoaded, ["google/gemma-2-2b", "demo"]),
        ({"max_n_logits": 10**6}, InvalidInput, ["max_n_logits is 1000000", "vocabulary has"]),
        ({"attribution_targets": [" joue au"]}, InvalidInput, ["attribution_targets[0]", "2 tok"]),
        (
            {"attribution_targets": [" tennis", " tennis"]},
            InvalidInput,
            ["attribution_targets[1]", "' tennis'", "twice"],
        ),
        (
            {"attribution_targets": [DIFFERENCE, {"plus": [" basket"], "minus": [" tennis"]}]},
            InvalidInput,
            ["attribution_targets[1]", "twice"],
        ),
        (
            {"attribution_targets": [{"plus": [" joue au"], "minus": [" tennis"]}]},
            InvalidInput,
            ["attribution_targets[0].plus[0] is ' joue au'", "2 tok"],
        ),
        (
            {"attribution_targets": [{"plus": [" tennis"], "minus": [" basket", " tennis"]}]},
            InvalidInput,
            ["attribution_targets[0].minus[1] is ' tennis'", "twice"],
        ),
        (
            {"attribution_targets": [{"layer": 4, "index": 0, "position": 1}]},
            InvalidInput,
            ["attribution_targets[0].layer is 4", "the model has 4 layers (0 to 3)"],
        ),
        (
            {"attribution_targets": [" tennis", {"layer": 0, "index": 1024, "position": 1}]},
            InvalidInput,
            ["attribution_targets[1].index is 1024", "has 1024 features in layer 0 (0 to 1023)"],
        ),
        (
            {"attribution_targets": [{"layer": 0, "index": 3, "position": 5}]},
            InvalidInput,
            ["attribution_targets[0].position is 5", "the prompt has 5 tokens (0 to 4)"],
        ),
        (
            {"attribution_targets": [{"layer": 0, "index": 3, "position": 1, "kind": "lorsa"}]},
            InvalidInput,
            ["attribution_targets[0].kind is 'lorsa'", "no attention features", "leave kind out"],
        ),
        (
            {"attribution_targets": [{"layer": 1, "index": 3, "position": 0}]},
            InvalidInput,
            ["attribution_targets[0] is feature 3 of layer 1 at position 0", "isn't active"],
        ),
        ({"messages": [{"role": "alien", "content": "x"}], "prompt": None}, InvalidInput, ["role"]),
    ],
)
def test_what_the_model_does_not_allow_is_refused_with_the_bound(fields, error, words):
    with pytest.raises(error) as raised:
        ask({**GRAPH, **fields})
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("prompt", ["🏀🎾", "מייקל ג'ורדן", "مرحبا", "a\u200db", "日本", "\ttab\n"])
def test_text_the_model_never_saw_still_gives_a_graph(prompt):
    graph = ask({**GRAPH, "prompt": prompt})
    assert graph["metadata"]["prompt"].endswith(prompt)


def test_the_model_s_id_is_accepted_in_either_form():
    settings = demo_settings()
    assert ask({**GRAPH, "model_id": "demo"}, settings)["metadata"]["scan"] == "demo"
