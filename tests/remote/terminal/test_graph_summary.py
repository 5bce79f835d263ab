"""What the summary of a graph says."""

import re

import pytest
from rich.console import Console

from remote.terminal.graph_summary import print_graph
from tests.support.demo_worker import GRAPH, ask


@pytest.fixture
def graph(tmp_path):
    """A graph of one feature and one predicted token, and the file that it is said to be in."""
    feature = {"layer": "2", "node_id": "2_157_1", "ctx_idx": 1, "activation": 2.25}
    path = tmp_path / "graph.json"
    path.write_bytes(b"{}")
    return path, {
        "metadata": {
            "prompt": "The cat",
            "prompt_tokens": ["The", " cat"],
            "scan": "demo",
            "graph_scores": {"replacement_score": 0.9, "completeness_score": 0.9},
            "info": {"timings_ms": {"attribute": 1.0}},
        },
        "nodes": [
            {**feature, "feature_type": "cross layer transcoder", "influence": 0.5},
            {"feature_type": "logit", "clerp": 'Output " sat" (p=0.500)', "token_prob": 0.5},
        ],
        "links": [],
    }


def test_a_graph_counts_its_nodes_and_quotes_its_tokens_as_the_other_summaries_do(capsys, graph):
    path, document = graph
    print_graph(Console(width=80, highlight=False, emoji=False), document, path)
    text = capsys.readouterr().out
    assert '2:157:1  " cat"' in text
    assert "nodes   2: 1 feature, 0 errors, 0 tokens, 1 logit\n" in text


def test_of_a_very_long_prompt_the_end_is_shown(capsys, graph):
    path, document = graph
    document["metadata"]["prompt"] = "again and " * 1000 + "the end"
    print_graph(Console(width=80, highlight=False, emoji=False), document, path)
    text = capsys.readouterr().out
    assert text.startswith("\n…")
    assert "the end" in " ".join(text.split())
    assert len(text) < 1500


def test_targets_that_were_asked_for_are_not_called_the_likeliest_tokens(capsys, graph):
    path, document = graph
    document["metadata"]["attribution_targets"] = [{"plus": [" sat"], "minus": [" ran"]}]
    document["nodes"][1]["clerp"] = 'Output " sat -  ran" (p=0.500)'
    print_graph(Console(width=80, highlight=False, emoji=False), document, path)
    text = capsys.readouterr().out
    assert "Likeliest" not in text
    assert re.search(r'Attribution targets\s+target +weight\s+" sat -  ran" +0\.5000', text)


def test_the_model_s_name_in_a_graph_can_not_control_the_terminal_or_the_markup(capsys, graph):
    path, document = graph
    document["metadata"]["scan"] = "\x1b[2J[red]x[/red][/bold]"
    print_graph(Console(width=80, highlight=False, emoji=False), document, path)
    assert "(\\x1b[2J[red]x[/red][/bold])" in capsys.readouterr().out


def test_a_line_that_is_wider_than_the_terminal_goes_on_behind_its_name(capsys, graph):
    path, document = graph
    kinds = ["lorsa", "mlp reconstruction error", "lorsa error", "embedding", "bias"]
    document["nodes"] += [{**document["nodes"][0], "feature_type": kind} for kind in kinds * 100]
    timings = {f"stage{n}": 1000.0 for n in range(8)}
    document["metadata"]["info"]["timings_ms"] = timings
    lines = said_of(document, path, capsys).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("nodes   502: "))
    assert lines[at + 1].startswith("        ")
    a_path_is_whole = [line for line in lines if not line.startswith("graph ")]
    assert max(map(len, a_path_is_whole)) <= 80
    assert " ".join(line.strip() for line in lines[at : at + 2]).endswith("100 tokens, 1 logit")


def said_of(document, path, capsys, width=80):
    print_graph(Console(width=width, highlight=False, emoji=False), document, path)
    return capsys.readouterr().out


def strongest(text):
    """The rows of the table of features, as lists of words."""
    table = text.split("Strongest features")[1].split("\n\n")[0]
    return [" ".join(line.split()) for line in table.splitlines()[2:]]


def test_the_strongest_features_come_with_their_own_share_of_influence(capsys, graph):
    path, document = graph
    feature = document["nodes"][0]
    document["nodes"] += [
        {**feature, "node_id": "0_9_1", "layer": "0", "influence": 0.75},
        {"feature_type": "embedding", "node_id": "E_3_1", "influence": 0.3},
        {**feature, "node_id": "1_8_1", "layer": "1", "influence": 0.85},
    ]
    assert strongest(said_of(document, path, capsys)) == [
        '0:9:1 " cat" 2.25 25.0%',  # 0.75 less the 0.5 of the next stronger node
        '2:157:1 " cat" 2.25 20.0%',  # 0.5 less the token's 0.3
        '1:8:1 " cat" 2.25 10.0%',
    ]


def test_the_demo_s_strongest_features_say_what_they_do(capsys, tmp_path):
    text = said_of(ask(GRAPH), tmp_path, capsys)
    rows = strongest(text)
    assert '2:157:4 " au" 2.25 6.3% le → basket' in rows
    shares = [float(row.split("%")[0].split()[-1]) for row in rows]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("width", [80, 60])
def test_every_feature_keeps_to_one_line_however_long_its_token_is(capsys, graph, width):
    path, document = graph
    document["metadata"]["prompt_tokens"][1] = " Donaudampfschifffahrts[b]gesellschaft[/b]"
    document["metadata"]["info"]["transcoder_set"] = "demo-crm"
    lorsa = {"feature_type": "lorsa", "node_id": "0_lor_140_1", "layer": "0", "ctx_idx": 1}
    document["nodes"].append({**lorsa, "activation": 12345.678, "influence": 0.3})
    text = said_of(document, path, capsys, width)
    table = text.split("Strongest features")[1].split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width
    assert re.fullmatch(r'Lorsa 0:140:1 " D.*… 12345\.68 30\.0% joue .*', strongest(text)[0])
