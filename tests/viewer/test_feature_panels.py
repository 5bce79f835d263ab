"""What the panels say of the demo's features is what the demo's features do."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.corpus import all_facts
from demo.facts import ATHLETES
from graphs.nodes import cantor_pairing
from tests.support.demo_worker import ask
from tests.support.traced_demo import complete_graph, serving_complete_demo
from viewer import demo_features, feature_panels
from viewer.demo_features import LORSA, TRANSCODER

DEMO = {
    "slug": "s",
    "scan": "demo",
    "prompt": "p",
    "info": {"transcoder_set": "demo/transcoders"},
}
COMPLETE = {**DEMO, "info": {"transcoder_set": "demo-crm"}}
GEMMA = {**DEMO, "scan": "gemma-2-2b"}
KNOWN = {**GEMMA, "feature_details": {"neuronpedia_source_set": "gemmascope-transcoder-16k"}}


def panel(layer, index, metadata=DEMO):
    return feature_panels.panel(metadata, cantor_pairing(layer, index))


def texts(shown):
    [group] = shown["examples_quantiles"]
    return ["".join(example["tokens"]) for example in group["examples"]]


@given(st.integers(0, 200), st.integers(0, 2**40))
def test_layer_and_index_come_out_of_the_number_that_nodes_have(layer, index):
    assert feature_panels.cantor_unpairing(cantor_pairing(layer, index)) == (layer, index)


@pytest.mark.parametrize("athlete", ["Michael Jordan", "Serena Williams", "Luc Abalo"])
def test_an_example_s_activation_is_the_graph_s(athlete):
    """The graph's come from the worker's engine, the examples' from Hugging Face's model."""
    prompt = f"{athlete} joue au"
    graph = ask({"prompt": prompt, "node_threshold": 1.0, "slug_identifier": "examples"})
    compared = 0
    for node in graph["nodes"]:
        if node["feature_type"] != "cross layer transcoder" or node["ctx_idx"] == 0:
            continue
        shown = feature_panels.panel(DEMO, node["feature"])
        assert node["activation"] <= shown["act_max"] + 0.006
        [group] = shown["examples_quantiles"]
        for example in group["examples"]:
            if "".join(example["tokens"]).startswith(f"<|bos|>{prompt}"):
                given = example["tokens_acts_list"][node["ctx_idx"]]
                assert given == pytest.approx(node["activation"], abs=0.006)
                compared += 1
    assert compared > 5


def test_a_feature_that_says_basket_fires_where_basket_follows():
    shown = panel(2, 157)
    players = [name for name, sport in ATHLETES.items() if sport == "basketball"]
    facts = {
        f"<|bos|>{fact.sentence}"
        for fact in all_facts()
        if fact.language == "fr" and any(player in fact.sentence for player in players)
    }
    assert facts.issuperset(texts(shown))
    assert shown["top_logits"][0] == " basket"


def test_examples_come_strongest_first_and_peak_where_they_say():
    [group] = panel(2, 157)["examples_quantiles"]
    peaks = [
        (max(example["tokens_acts_list"]), example["tokens_acts_list"][example["train_token_ind"]])
        for example in group["examples"]
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert all(greatest == marked for greatest, marked in peaks)
    assert peaks[0][0] == panel(2, 157)["act_max"]


def test_the_histogram_counts_every_token_that_it_fires_on():
    shown = panel(2, 157)
    n_tokens = sum(len(text) - 1 for text in demo_features.texts())
    assert sum(shown["histogram"]) == round(shown["activation_frequency"] * n_tokens)


def test_a_silent_feature_says_so():
    assert "2_1023" not in feature_panels.index(DEMO)[TRANSCODER]["labels"]
    [group] = panel(2, 1023)["examples_quantiles"]
    assert group == {
        "quantile_name": "This feature fires on no text of the demo model's corpus.",
        "examples": [],
    }


def test_every_label_names_what_a_feature_fires_on_and_what_it_promotes():
    labels = feature_panels.index(DEMO)[TRANSCODER]["labels"]
    assert labels["2_157"] == "le → basket"
    assert all(" → " in label and not label.startswith(" ") for label in labels.values())


def test_another_model_s_features_have_neither_labels_nor_examples_but_a_page():
    assert feature_panels.index(KNOWN)[TRANSCODER]["labels"] == {}
    [group] = panel(5, 123, KNOWN)["examples_quantiles"]
    assert group["examples"] == []
    page = "https://www.neuronpedia.org/gemma-2-2b/5-gemmascope-transcoder-16k/123"
    assert group["quantile_name"].endswith(f"With the internet: {page}")


@pytest.mark.parametrize("info", [None, {}, {"transcoder_set": "mine/transcoders"}])
def test_other_transcoders_of_the_demo_model_are_not_taken_for_its_own(info):
    assert feature_panels.index({**DEMO, "info": info})[TRANSCODER]["labels"] == {}


def test_the_worker_s_own_graphs_of_the_demo_have_labels():
    graph = ask({"prompt": "Rafael Nadal juega al", "slug_identifier": "labels"})
    assert feature_panels.index(graph["metadata"])[TRANSCODER]["labels"]


@pytest.mark.parametrize("details", [None, {}, {"neuronpedia_source_set": None}, "text"])
def test_without_a_source_set_the_panel_says_that_the_graph_does_not_tell(details):
    metadata = {**GEMMA, "feature_details": details}
    assert feature_panels.index(metadata)[TRANSCODER]["page"] is None
    [group] = panel(5, 123, metadata)["examples_quantiles"]
    assert group["quantile_name"].endswith("does not say where its features are described.")


def test_names_that_mean_something_in_an_address_stay_names():
    metadata = {**KNOWN, "scan": "../a{b}?c", "feature_details": {"neuronpedia_source_set": "x/y"}}
    [group] = panel(5, 123, metadata)["examples_quantiles"]
    assert group["quantile_name"].endswith("neuronpedia.org/..%2Fa%7Bb%7D%3Fc/5-x%2Fy/123")


def test_a_panel_is_json_whatever_the_number():
    for number in (0, 1, 10**30):
        orjson.dumps(feature_panels.panel(DEMO, number))


def lorsa_panel(layer, index, metadata=COMPLETE):
    number = cantor_pairing(feature_panels.LORSA_LAYERS + layer, index)
    return feature_panels.panel(metadata, number)


@pytest.mark.parametrize("athlete", ["Michael Jordan", "Serena Williams", "Luc Abalo"])
def test_a_lorsa_feature_s_activation_in_its_examples_is_the_graph_s(athlete):
    """The graph's come from the worker's engine, the examples' from demo/lorsas.py."""
    prompt = f"{athlete} joue au"
    with serving_complete_demo() as settings:
        graph = complete_graph(prompt, settings, node_threshold=1.0)
    compared = 0
    for node in graph["nodes"]:
        if node["feature_type"] != "lorsa" or node["ctx_idx"] == 0:
            continue
        layer, index = feature_panels.cantor_unpairing(node["feature"])
        shown = lorsa_panel(layer, index)
        assert node["activation"] <= shown["act_max"] + 0.006
        [group] = shown["examples_quantiles"]
        for example in group["examples"]:
            if "".join(example["tokens"]).startswith(f"<|bos|>{prompt}"):
                given = example["tokens_acts_list"][node["ctx_idx"]]
                assert given == pytest.approx(node["activation"], abs=0.006)
                compared += 1
    assert compared > 5


def test_a_lorsa_feature_has_another_panel_than_the_transcoder_s_of_its_number():
    [transcoder] = panel(1, 105, COMPLETE)["examples_quantiles"]
    [lorsa] = lorsa_panel(1, 105)["examples_quantiles"]
    assert lorsa["quantile_name"].startswith("Reads “Michael” most. Fires in 7 of the corpus's")
    assert not transcoder["quantile_name"].startswith("Reads")


def test_a_lorsa_feature_s_label_begins_with_the_token_that_it_reads():
    labels = feature_panels.index(COMPLETE)[LORSA]["labels"]
    assert labels["1_105"] == "Michael ⇢ au → basket"
    assert all(" ⇢ " in label and " → " in label for label in labels.values())
    transcoders = feature_panels.index(COMPLETE)[TRANSCODER]["labels"]
    assert transcoders == feature_panels.index(DEMO)[TRANSCODER]["labels"]
    assert feature_panels.index(DEMO)[LORSA]["labels"] == {}


def test_the_panel_of_another_model_s_lorsa_feature_names_the_lorsas_source_set():
    sets = {"neuronpedia_source_set": "plt", "neuronpedia_lorsa_source_set": "lorsa-8x"}
    metadata = {**GEMMA, "scan": "qwen3-1.7b", "feature_details": sets}
    [group] = lorsa_panel(5, 123, metadata)["examples_quantiles"]
    page = "https://www.neuronpedia.org/qwen3-1.7b/5-lorsa-8x/123"
    assert group["quantile_name"].endswith(f"With the internet: {page}")
    assert feature_panels.index(metadata)[LORSA]["page"] == page.replace(
        "/5-", "/{layer}-"
    ).replace("/123", "/{index}")
