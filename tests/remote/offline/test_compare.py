"""`client.py compare`: which features graphs share, how strong they are in each, what recurs."""

import gzip
import json

import pytest

from client import main
from remote.errors import WrongFile
from remote.graphs.features import FeatureKey
from remote.offline.compare import compare
from tests.support.complete_documents import fixture, fixture_path
from tests.support.demo_worker import ask

ESCAPES = "\x1b[2J\x9b\u202e[bold]x[/bold]"


def feature(name, influence, activation, kind="cross layer transcoder"):
    layer, *_, position = name.split("_")
    fields = {"layer": layer, "ctx_idx": int(position), "feature_type": kind}
    return {"node_id": name, **fields, "influence": influence, "activation": activation}


def graph(folder, name, nodes, **metadata):
    path = folder / f"{name}.json"
    fields = {"slug": name, "scan": "demo", "prompt": name, "prompt_tokens": ["a", "b", "c"]}
    path.write_text(json.dumps({"metadata": {**fields, **metadata}, "nodes": nodes, "links": []}))
    return path


@pytest.fixture
def three(tmp_path):
    """Three graphs; the shares of influence in the first are 0.25 (an error), 0.5 and 0.125."""
    (tmp_path / "runs" / "graphs").mkdir(parents=True)
    folder = tmp_path / "runs" / "graphs"
    error = feature("0_error_1", 0.25, None, "mlp reconstruction error")
    first = [feature("2_7_2", 0.875, 1.5), feature("2_7_1", 0.75, 3.0), error]
    second = [feature("2_7_0", 0.5, 2.0), feature("1_9_1", 0.75, 4.0)]
    third = [feature("1_9_2", 0.25, 8.0), feature("0_4_2", 0.5, 1.0)]
    names = zip(("a", "b", "c"), (first, second, third), strict=True)
    return [graph(folder, name, nodes) for name, nodes in names]


def test_features_are_told_apart_by_layer_index_and_kind_and_added_up_over_tokens(three):
    comparison = compare(three[:2])
    [common], [differing] = comparison.common, comparison.differing
    assert common.key == FeatureKey(2, 7, "transcoder")
    in_a, in_b = common.graphs
    assert (in_a.positions, in_a.influence, in_a.activation) == ([1, 2], 0.625, 3.0)
    assert (in_b.positions, in_b.influence, in_b.activation) == ([0], 0.5, 2.0)
    assert differing.key == FeatureKey(1, 9, "transcoder")
    assert differing.graphs[0] is None
    assert differing.graphs[1].influence == 0.25


def test_over_a_batch_the_features_that_recur_are_counted_and_averaged(three, tmp_path):
    comparison = compare([tmp_path / "runs"])
    assert [graph.slug for graph in comparison.graphs] == ["a", "b", "c"]
    first, second = comparison.recurring
    assert (first.key, len(first.present)) == (FeatureKey(2, 7, "transcoder"), 2)
    assert first.influence == pytest.approx((0.625 + 0.5) / 3)
    assert first.activation == 2.5
    assert second.key == FeatureKey(1, 9, "transcoder")
    assert comparison.common == []


def test_the_graphs_of_complete_replacement_models_have_both_kinds_of_features(tmp_path):
    path = fixture_path("glu-9")
    document = fixture("glu-9")
    comparison = compare([path, path])
    assert comparison.differing == []
    kinds = {found.key.kind for found in comparison.common}
    assert kinds == {"transcoder", "lorsa"}
    types = {"cross layer transcoder": "cro", "lorsa": "lor"}
    ids = {
        f"{found.key.layer}_{'lor' if found.key.kind == 'lorsa' else 'cro'}_{found.key.index}_{at}"
        for found in comparison.common
        for at in found.graphs[0].positions
    }
    assert ids == {n["node_id"] for n in document["nodes"] if n["feature_type"] in types}


def test_the_demo_s_graphs_of_one_fact_in_two_languages_share_features(tmp_path, capsys):
    paths = []
    for prompt in ("Michael Jordan joue au", "Michael Jordan juega al"):
        paths.append(tmp_path / f"{prompt[15:]}.json")
        paths[-1].write_text(json.dumps(ask({"prompt": prompt})))
    assert main(["compare", *map(str, paths), "--top", "3"]) == 0
    said = capsys.readouterr().out
    assert 'A  "<|bos|>Michael Jordan joue au"' in said
    assert "the strongest 3" in said
    assert main(["compare", *map(str, paths), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["common"]
    assert output["differing"]
    for found in output["common"]:
        assert found["n_graphs"] == 2
        assert all(in_graph["activation"] > 0 for in_graph in found["graphs"])
    shares = [
        g["influence"] for f in output["common"] + output["differing"] for g in f["graphs"] if g
    ]
    assert all(0 <= share <= 1 for share in shares)
    assert 0.5 < sum(shares) < 2


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("n_graphs", [2, 3, 4, 5, 6])
def test_no_heading_and_no_number_is_cut_on_a_narrow_terminal(
    width, n_graphs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(width))
    nodes = [
        feature("0_error_1", 0.25, None, "mlp reconstruction error"),
        {**feature("12_16383_2", 0.75, 153.25), "clerp": "a label of more than 20 letters"},
        {**feature("25_1_1", 0.875, 7.5), "clerp": "short"},
    ]
    paths = [graph(tmp_path, f"g{n}", nodes[: 3 - n % 2]) for n in range(n_graphs)]
    assert main(["compare", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    [row, *_] = [text for text in said.splitlines() if text.startswith("12:16383 ")]
    [heading, *_] = [text for text in said.splitlines() if text.startswith("feature ")]
    assert len(row) <= width
    assert "…" not in heading
    if n_graphs > 4:
        assert heading.split() == ["feature", "graphs", "influence", "activation"]
        assert row.split()[1:5] == [str(n_graphs), "(100%)", "50.00%", "153.25"]
        return
    assert heading.split() == ["feature", *"ABCDEF"[:n_graphs]]
    fits = (width, n_graphs) not in {(60, 3), (60, 4)}
    cells = ["50.00%", "153.25"] if fits else ["50.00%"]
    assert row.split()[1 : 1 + n_graphs * len(cells)] == cells * n_graphs
    assert ("activations need a wider terminal" in " ".join(said.split())) is not fits


def test_long_prompts_that_differ_at_their_ends_are_told_apart(tmp_path, capsys):
    common = "the same words before that " * 10
    paths = [
        graph(tmp_path, name, [], prompt=f"{common}the {name} word") for name in ("first", "other")
    ]
    assert main(["compare", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    assert 'the first word"' in said
    assert 'the other word"' in said


def test_many_graphs_are_shown_as_what_recurs(three, tmp_path, capsys):
    more = [tmp_path / "runs", *three[:2]]
    assert main(["compare", *map(str, more)]) == 0
    said = capsys.readouterr().out
    assert "Features that recur over 5 graphs: 2" in said
    assert "4 (80%)" in said


def test_what_a_graph_says_can_not_act_on_the_terminal(three, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    nodes = [{**feature("2_7_2", 0.5, 1.0), "clerp": ESCAPES}]
    odd = graph(tmp_path, "odd", nodes, prompt=ESCAPES)
    assert main(["compare", str(three[0]), str(odd)]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[2J\\x9b\\u202e[bold]x[/bold]" in said
    assert said.count("[bold]") == said.count("\\x1b[2J") == 2
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)


def test_ids_that_no_feature_has_are_left_out(tmp_path):
    names = ["2_x_1", "2_7", "-1_3_0", "2_cro_7_1_1", "9" * 400 + "_1_0"]
    nodes = [{**feature("2_7_1", 0.5, 1.0), "node_id": name} for name in names]
    odd = graph(tmp_path, "odd", nodes)
    comparison = compare([odd, odd])
    assert comparison.common + comparison.differing == []


def test_graphs_of_different_models_are_not_compared(three, tmp_path):
    other = graph(tmp_path, "other", [], scan="gemma-2-2b")
    with pytest.raises(WrongFile, match=r"other\.json is of 'gemma-2-2b', .* of 'demo'"):
        compare([three[0], other])
    sets = [{"info": {"transcoder_set": name}} for name in ("x", "y")]
    paths = [graph(tmp_path, f"set-{i}", [], **info) for i, info in enumerate(sets)]
    with pytest.raises(WrongFile, match="'demo' with 'y'"):
        compare(paths)


def of_sets(folder, *names):
    """Graphs with what they say of their sets: the worker's name, and Neuronpedia's."""
    return [
        graph(
            folder,
            f"graph-{n}",
            [],
            info={"transcoder_set": own},
            feature_details={"neuronpedia_source_set": source_set},
        )
        for n, (own, source_set) in enumerate(names)
    ]


@pytest.mark.parametrize(
    "names", [[(None, "x"), (None, "y")], [("set", "x"), (None, "y")], [("set", None), (None, "y")]]
)
def test_sets_that_only_neuronpedia_names_are_told_apart_too(names, tmp_path):
    with pytest.raises(WrongFile, match="'demo' with 'y'"):
        compare(of_sets(tmp_path, *names))


@pytest.mark.parametrize(
    "names", [[("set", "x"), ("set", None)], [("set", "x"), (None, "x")], [(None, None)] * 2]
)
def test_a_set_that_one_of_its_names_shows_to_be_the_same_is_compared(names, tmp_path):
    assert len(compare(of_sets(tmp_path, *names)).graphs) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "it is no JSON"),
        (b"[]", "no graph document, the document is not"),
        (b'{"metadata": {"prompt_tokens": []}, "links": []}', "no graph document, nodes is not"),
        (gzip.compress(b"{}", mtime=0)[:-6], "not a whole gzipped file"),
        (b"\x1f\x8bnonsense", "gzipped file"),
        (
            b'{"metadata": {"prompt_tokens": []}, "nodes": [{"feature_type": "x"},'
            b'{"feature_type": "x"}], "links": []}',
            "two of its nodes have the same node_id",
        ),
        (
            b'{"metadata": {"prompt_tokens": []}, "nodes": [], "links": [{"weight": 1}]}',
            "the source of link 0 is none of the nodes",
        ),
        (
            b'{"metadata": {"prompt_tokens": []}, "nodes": [], "links": [{"weight": "1"}]}',
            "link 0 has no weight that is a number",
        ),
    ],
)
def test_a_file_that_is_no_graph_is_one_sentence(three, tmp_path, capsys, content, words):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    assert main(["compare", str(three[0]), str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_what_there_is_not_is_named(three, tmp_path, capsys):
    assert main(["compare", str(three[0])]) == 2
    assert "name two graphs at least" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert "no folder of a batch" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.json"), str(three[0])]) == 2
    assert "No such file" in capsys.readouterr().err
