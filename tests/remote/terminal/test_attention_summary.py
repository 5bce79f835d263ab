"""What a summary says of a complete graph: features of both kinds, and what attention does."""

import json

import pytest
from pydantic import ValidationError
from rich.console import Console

from demo.language_steer import twins
from remote.graphs.document import GraphDocument
from remote.terminal.attention_summary import what_is_carried
from remote.terminal.graph_summary import print_graph
from tests.support.traced_demo import complete_graph, serving_complete_demo

PROMPT = "Michael Jordan joue au"


@pytest.fixture(scope="module")
def settings():
    with serving_complete_demo() as served:
        yield served


@pytest.fixture(scope="module")
def demo(settings):
    return complete_graph(PROMPT, settings)


@pytest.fixture
def said(capsys, tmp_path):
    """What printing a graph writes."""

    def print_it(graph, width=120):
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(graph))
        print_graph(Console(width=width, highlight=False, emoji=False), graph, path)
        return capsys.readouterr().out

    return print_it


def node(name, kind, layer, position, **fields):
    return {
        "node_id": name,
        "feature_type": kind,
        "layer": layer,
        "ctx_idx": position,
        "feature": None,
        "clerp": "",
        "activation": 1.5 if kind in {"lorsa", "cross layer transcoder"} else None,
        "influence": 0.5,
    } | fields


@pytest.fixture
def small():
    """A complete graph of three tokens, whose one Lorsa feature is traced."""
    tracing = {
        "pair_wise_contributors": [["0_bias_lorsa_bQ_2", "0_cro_7_1", 0.5]],
        "top_q_marginal_contributors": [["0_bias_lorsa_bQ_2", 2.0], ["0_error_mlp_2", 1.0]],
        "top_k_marginal_contributors": [["0_cro_7_1", 3.25], ["E_5_1", 1.0]],
    }
    nodes = [
        node("1_lor_105_2", "lorsa", 1, 2, influence=0.4, qk_tracing_results=tracing),
        node("1_cro_105_2", "cross layer transcoder", 1, 2, influence=0.7),
        node("0_lor_9_2", "lorsa", 0, 2, influence=0.9),
        node("0_error_mlp_2", "mlp reconstruction error", 0, 2, influence=0.95),
        node("0_error_attn_2", "lorsa error", 0, 2, influence=1.0),
        node("E_5_1", "embedding", "E", 1, influence=0.8),
        node("E_6_2", "embedding", "E", 2, influence=0.85),
        node("2_8_2", "logit", 2, 2, clerp='Logit " sat" (p=0.500)', token_prob=0.5, influence=1.0),
    ]
    links = [("E_5_1", "1_lor_105_2", 1.0), ("E_6_2", "1_lor_105_2", -3.0),
             ("E_5_1", "0_lor_9_2", 0.5), ("E_6_2", "0_lor_9_2", 0.25)]  # fmt: skip
    outside = {
        "0_cro_7_1": node("0_cro_7_1", "cross layer transcoder", 0, 1, influence=None),
        "0_bias_lorsa_bQ_2": node("0_bias_lorsa_bQ_2", "bias", 0, 2, influence=None),
    }
    return {
        "metadata": {
            "prompt": "The cat sat",
            "prompt_tokens": ["The", " cat", " on"],
            "scan": "qwen3-1.7b",
            "graph_scores": {"replacement_score": 0.9, "completeness_score": 0.9},
            "info": {"timings_ms": {"attribute": 1.0}},
        },
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in links],
        "qk_only_nodes": outside,
    }


def rows(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_features_are_named_by_kind_layer_and_number_the_strongest_first(said, small):
    shown = rows(said(small))
    first = shown.index("kind feature at token activation influence")
    assert shown[first + 1 : first + 4] == [
        'Lorsa 1:105:2 " on" 1.50 40.0%',
        'transcoder 1:105:2 " on" 1.50 30.0%',
        'Lorsa 0:9:2 " on" 1.50 5.0%',
    ]
    assert '" sat" 0.5000' in shown
    counts = "nodes 8: 1 transcoder feature, 2 Lorsa features, 1 MLP error, 1 attention error, "
    assert counts + "2 tokens, 1 logit" in shown


def test_features_are_grouped_by_the_token_they_read_most_and_the_one_they_write_at(said, small):
    assert '1 " cat" 2 " on" 45.0% 1/105, 0/9' in rows(said(small))


def test_a_trace_says_from_which_token_to_which_and_what_adds_most_to_the_score(said, small):
    shown = rows(said(small))
    first = shown.index('from 2 " on" to 1 " cat": Lorsa 1/105')
    assert shown[first + 1 : first + 6] == [
        "query +2.00 query bias of layer 0's Lorsa",
        "query +1.00 error of layer 0's MLP",
        "key +3.25 transcoder 0/7",
        'key +1.00 token " cat"',
        "both +0.50 query bias of layer 0's Lorsa with transcoder 0/7",
    ]


def test_features_of_one_head_and_token_share_one_trace(said, small):
    small["nodes"][2]["qk_tracing_results"] = small["nodes"][0]["qk_tracing_results"]
    assert 'from 2 " on" to 1 " cat": Lorsa 1/105, 0/9' in rows(said(small))


def test_without_traces_the_summary_says_how_to_get_them(said, small):
    del small["nodes"][0]["qk_tracing_results"]
    text = said(small)
    assert "enable_qk_tracing tells why attention looks there" in text
    assert "from 2" not in text


def test_a_graph_without_lorsas_says_nothing_of_attention(said, small):
    small["nodes"] = [n for n in small["nodes"] if not n["feature_type"].startswith("lorsa")]
    text = said(small)
    assert "ttention" not in text
    assert "kind" not in text


def test_more_features_than_fit_are_counted(said, small):
    small["nodes"] += [node(f"0_lor_{i}_2", "lorsa", 0, 2, influence=0.9) for i in range(20, 30)]
    small["links"] += [
        {"source": "E_5_1", "target": f"0_lor_{i}_2", "weight": 1.0} for i in range(20, 30)
    ]
    assert " and 6 more" in said(small)


HOSTILE = "\x1b[2J[red]x[/red]\n"


def test_no_text_of_a_complete_graph_can_control_the_terminal_or_the_markup(said, small):
    document = json.loads(json.dumps(small).replace("0_cro_7_1", "evil").replace("2_8_2", "logit"))
    document["metadata"]["prompt_tokens"] = [HOSTILE] * 3
    outside = document["qk_only_nodes"]["evil"]
    outside |= {"feature_type": HOSTILE, "node_id": f"{HOSTILE}{{0.__class__}}"}
    text = said(document)
    assert "\x1b" not in text
    assert "\\x1b[2J[red]x[/red]\\n{0.__class__}" in text
    assert '1 "\\x1b[2J[red]x[/red]\\n"' in text


@pytest.mark.parametrize(
    "break_it",
    [
        lambda graph: graph["nodes"][0].update(node_id="odd"),
        lambda graph: graph["nodes"][0].update(ctx_idx=7),
        lambda graph: graph["nodes"][0].update(qk_tracing_results={}),
        lambda graph: graph["qk_only_nodes"]["0_cro_7_1"].update(node_id="odd"),
        lambda graph: graph["links"][0].update(weight="heavy"),
    ],
)
def test_a_complete_graph_that_is_not_as_graphs_are_is_one_error(said, small, break_it):
    break_it(small)
    with pytest.raises(ValidationError):
        said(small)


def test_ids_that_no_node_has_are_shown_as_they_are(said, small):
    small["qk_only_nodes"] = {}
    shown = rows(said(small))
    assert "query +2.00 0_bias_lorsa_bQ_2" in shown
    assert 'from 2 " on" to ?: Lorsa 1/105' in shown


def test_the_demo_s_features_come_with_what_they_do(said, demo):
    shown = rows(said(demo))
    assert 'transcoder 2:157:4 " au" 2.25 5.6% le → basket' in shown
    assert 'Lorsa 0:140:4 " au" 1.01 4.6% joue ⇢ joue → football' in shown


def test_in_the_demo_the_athlete_is_read_where_joue_au_meets_what_fires_on_the_name(said, demo):
    shown = rows(said(demo))
    carried = [row for row in shown if row.startswith('1 "Michael" 4 " au"')]
    assert carried
    assert "1/105" in carried[0]
    first = shown.index('from 4 " au" to 1 "Michael": Lorsa 1/105, 1/4, 1/0')
    trace = shown[first + 1 : first + 8]
    assert "query +0.74 transcoder 0/110 au → plein" in trace
    assert any(row.startswith("key") and "transcoder 0/221" in row for row in trace)


@pytest.mark.parametrize("language", ["fr", "es"])
def test_every_athlete_is_carried_to_the_last_token_and_nearly_all_are_traced(
    said, settings, language
):
    facts = [fact for pair in twins() for fact in pair if fact.language == language]
    traced = 0
    for fact in facts:
        graph = complete_graph(fact.prompt, settings)
        document = GraphDocument.model_validate(graph)
        last = len(document.metadata.prompt_tokens) - 1
        name = range(1, last - 1)
        groups = what_is_carried(document)[:6]
        assert any(group.source in name and group.target == last for group in groups), fact.prompt
        text = said(graph)
        traced += any(f"from {last} " in row and f" to {p} " in row
                      for row in rows(text) for p in name)  # fmt: skip
    assert traced >= 30
    assert len(facts) == 31
