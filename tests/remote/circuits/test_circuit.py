"""`client.py circuit` on the demo: what features are worth, beside the library's own numbers."""

import json
import math
import shlex

import pytest
import torch

import model_loader
from client import main
from errors import InvalidInput
from remote.circuits.experiments import Options, measure
from remote.circuits.report import measure_all
from remote.circuits.sets import CircuitGraph, Selection
from remote.errors import Unreachable, WrongFile
from tests.support.circuit_graphs import documents, written
from tests.support.demo_worker import PROMPT, ask, demo_settings

ESCAPES = "\x1b[2J\x9b\u202e[bold]x[/bold]"


@pytest.fixture
def paths(tmp_path):
    return [
        written(tmp_path, document, name) for name, document in zip("abc", documents(), strict=True)
    ]


def run(line, server, capsys):
    code = main([*shlex.split(line), "--url", server.url])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def by_the_library(graph, off, **how):
    """The logits after the prompt with these features set to 0, by the library, alone."""
    loaded = model_loader.get_model(demo_settings())
    prompt = graph.metadata.prompt  # with its leading special token
    ids = loaded.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids[0]
    sites = (graph.sites[n] for n in off)
    changes = [(site.key.layer, site.position, site.key.index, 0.0) for site in sites]
    logits, _ = loaded.model.feature_intervention(ids, changes, **how)
    return logits[0, -1].detach().double()


def logit_difference(logits, target, other=None):
    """Of two tokens, or of one and all others."""
    loaded = model_loader.get_model(demo_settings())
    n = loaded.token_text.id_of(target)
    if other is not None:
        return float(logits[n] - logits[loaded.token_text.id_of(other)])
    others = torch.cat([logits[:n], logits[n + 1 :]])
    return float(logits[n] - others.logsumexp(0))


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (Options(n_random=3), {}),
        (
            Options(n_random=3, held=(("freeze_attention", False),)),
            {"freeze_attention": False},
        ),
        (
            Options(n_random=3, against=(" tennis",), held=(("constrained_layers", "all"),)),
            {"constrained_layers": range(4)},
        ),
    ],
    ids=["attention frozen", "free", "all layers"],
)
def test_each_number_is_the_library_s_one_by_one(paths, options, how):
    graph = CircuitGraph.read(paths[0])
    everything = set(range(len(graph.sites)))
    chosen = Selection(strongest=12).of(graph)
    found = measure(graph, chosen, ask, options)
    assert found.target == (" basket",)
    assert found.against == options.against

    def expected(off):
        other = options.against[0] if options.against else None
        logits = by_the_library(graph, sorted(off), **how)
        return pytest.approx(logit_difference(logits, " basket", other), abs=2e-4)

    assert found.span.full == expected([])
    assert found.span.empty == expected(everything)
    sets = [(chosen, found.outcome), *((r.members, r.outcome) for r in found.randoms)]
    assert len(sets) == 4
    for members, outcome in sets:
        assert outcome.removed == expected(members)
        assert outcome.kept == expected(everything - members)
    assert found.predictions.full.token == " basket"
    loaded = model_loader.get_model(demo_settings())
    for prediction, off in (
        (found.predictions.empty, everything),
        (found.predictions.kept, everything - chosen),
        (found.predictions.removed, chosen),
    ):
        logits = by_the_library(graph, sorted(off), **how)
        assert prediction.token == loaded.token_text.single(int(logits.argmax()))


def test_more_sets_than_a_request_holds_go_in_several_with_the_same_numbers(paths):
    graph = CircuitGraph.read(paths[0])
    chosen = Selection(strongest=5).of(graph)
    jobs = []

    def counted(job):
        jobs.append(job)
        return ask(job)

    few = measure(graph, chosen, counted, Options(n_random=10))
    assert [job["action"] for job in jobs] == ["forward-pass", "intervene"]
    many = measure(graph, chosen, counted, Options(n_random=60))
    assert [len(job["groups"]) for job in jobs[3:]] == [50, 50, 22]
    assert [r.members for r in many.randoms[:10]] == [r.members for r in few.randoms]
    for one, other in zip(few.randoms, many.randoms, strict=False):
        assert one.outcome.kept == pytest.approx(other.outcome.kept, abs=1e-4)
        assert one.outcome.removed == pytest.approx(other.outcome.removed, abs=1e-4)
    last = many.randoms[-1]
    off = set(range(len(graph.sites))) - last.members
    expected = logit_difference(by_the_library(graph, sorted(off)), " basket")
    assert last.outcome.kept == pytest.approx(expected, abs=2e-4)


def test_the_strongest_features_are_worth_more_than_as_strong_ones_at_random(paths):
    graphs = [CircuitGraph.read(path) for path in paths[:2]]
    report = measure_all(graphs, Selection(strongest=16), ask, Options())
    worth = report.worth_in_all()
    assert worth.completeness > 0.7
    assert worth.necessity > 0.7
    for chance in (worth.chance_of_completeness, worth.chance_of_necessity):
        assert chance.mean < 0.5
        assert (chance.below, chance.n_sets) == (20, 20)


def test_all_features_are_worth_everything(paths):
    [graph] = (CircuitGraph.read(path) for path in paths[2:])
    everything = frozenset(range(len(graph.sites)))
    found = measure(graph, everything, ask, Options(n_random=2))
    assert found.outcome.kept == pytest.approx(found.span.full, abs=1e-4)
    assert found.outcome.removed == pytest.approx(found.span.empty, abs=1e-4)
    assert found.activation_alone == pytest.approx(1, abs=1e-5)


def test_the_command_prints_the_shares_with_chance_beside(paths, server, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = run(f"circuit {paths[0]} {paths[1]} --strongest 16", server, capsys)
    assert "completeness" in said
    assert f'"<|bos|>{PROMPT}"' in said
    assert "16 of 94" in said
    assert "20 of 20" in said
    assert "\nall  " in said
    assert "node_threshold 1)" in said
    assert '" basket"' in said
    assert '" tenis"' in said
    said = run(f"circuit {paths[2]} --strongest 4 --random 0", server, capsys)
    assert "what was pruned away stays as it is" in said
    assert "random sets" not in said


def test_as_json_the_command_says_what_the_worker_s_numbers_are(paths, server, capsys):
    line = f"circuit {paths[0]} --strongest 6 --random 4 --seed 3 --metric probability --json"
    output = json.loads(run(line, server, capsys))
    graph = CircuitGraph.read(paths[0])
    options = Options(metric="probability", n_random=4, seed=3)
    expected = measure(graph, Selection(strongest=6).of(graph), ask, options)
    [found] = output["graphs"]
    assert found["metric"]["full"] == pytest.approx(expected.span.full)
    assert found["metric"]["kept"] == pytest.approx(expected.outcome.kept)
    assert found["n_features"] == 94
    assert len(found["set"]) == 6
    assert len(found["random_sets"]) == 4
    span, outcome = expected.span, expected.outcome
    share = (outcome.kept - span.empty) / (span.full - span.empty)
    assert found["circuit_completeness"] == pytest.approx(share)
    assert output["all"]["circuit_completeness"] == found["circuit_completeness"]
    assert found["chance"]["circuit_necessity"]["n_sets"] == 4
    assert run(line, server, capsys) == run(line, server, capsys)
    assert run(line.replace("--seed 3", "--seed 4"), server, capsys) != run(line, server, capsys)


def test_a_set_of_one_graph_is_tried_in_others_and_those_without_it_are_left_out(
    paths, server, tmp_path, capsys
):
    (tmp_path / "runs" / "graphs").mkdir(parents=True)
    for path in paths[:2]:
        path.rename(tmp_path / "runs" / "graphs" / path.name)
    line = f"circuit {tmp_path / 'runs'} --random 2 --json"
    in_the_first = tmp_path / "runs" / "graphs" / "a.json"
    output = json.loads(run(f"{line} --set-of {in_the_first} --strongest 30", server, capsys))
    first, second = output["graphs"]
    assert len(first["set"]) >= 30
    assert len(second["set"]) > 0
    assert second["n_missing"] > 0
    keys = {(site["layer"], site["index"]) for site in first["set"]}
    assert {(site["layer"], site["index"]) for site in second["set"]} < keys
    output = json.loads(run(f"{line} --features 2:157:4", server, capsys))
    assert len(output["graphs"]) == 1
    assert "the feature is not in it" in output["left_out"][0]


def test_a_graph_that_asks_for_a_difference_is_measured_by_it(tmp_path):
    difference = {"plus": [" basket"], "minus": [" tennis", " volley"]}
    document = ask({"prompt": PROMPT, "attribution_targets": [difference]})
    graph = CircuitGraph.read(written(tmp_path, document))
    found = measure(graph, Selection(strongest=3).of(graph), ask, Options(n_random=1))
    assert (found.target, found.against) == ((" basket",), (" tennis", " volley"))
    logits = by_the_library(graph, [])
    expected = (
        logit_difference(logits, " basket", " tennis")
        + logit_difference(logits, " basket", " volley")
    ) / 2
    assert found.span.full == pytest.approx(expected, abs=1e-4)
    token = measure(graph, found.chosen, ask, Options(metric="probability", n_random=0))
    assert token.span.full == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    others = Options(n_random=0, target=(" tennis",))
    assert measure(graph, found.chosen, ask, others).span.full < 0


def test_a_graph_of_a_feature_is_measured_by_the_likeliest_token(tmp_path):
    feature = {"layer": 2, "index": 157, "position": 4}
    document = ask({"prompt": PROMPT, "attribution_targets": [feature]})
    graph = CircuitGraph.read(written(tmp_path, document))
    found = measure(graph, Selection(strongest=3).of(graph), ask, Options(n_random=0))
    assert found.target == (" basket",)


def test_certainty_has_odds_too(paths):
    """A float32 probability of 1 or 0 is a number of its own, not an infinite one."""
    graph = CircuitGraph.read(paths[0])

    def certain(job):
        output = ask(job)
        for row in [output["baseline"], *output["experiments"]] if "baseline" in output else []:
            row["targets"][0]["probability"] = 1.0 if row is output["baseline"] else 0.0
        return output

    found = measure(graph, Selection(strongest=3).of(graph), certain, Options(n_random=0))
    assert 17 < found.span.full < 18
    assert math.isfinite(found.span.empty)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("", 2, "it has no group and no pin with features"),
        ("--group x", 2, "it has no group 'x', and no other group"),
        ("--features 0:1:1,0:1:2", 2, "none of the 2 features is in it"),
        ("--features 2:157:4 --strongest 3", 2, "--features and --strongest each choose a set"),
        ("--strongest 3 --metric logit --against ' tennis'", 2, "for the metric logit-difference"),
        ("--strongest 3 --target ' x' --against ' x'", 2, "' x' is on both sides"),
        ("--strongest 3 --target ' nosuchtoken'", 1, "invalid_input: "),
        ("--strongest 3 --constrained-layers 0-9", 1, "constrained_layers ends at 9"),
        ("--strongest 3 --set-of none.json", 2, "No such file"),
    ],
)
def test_what_can_not_be_measured_is_one_sentence(paths, server, capsys, options, code, words):
    assert main([*shlex.split(f"circuit {paths[2]} {options}"), "--url", server.url]) == code
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    [said] = errors
    assert words in said


@pytest.mark.parametrize("option", ["--features 2:x", "--strongest 0", "--random -1", "--metric x"])
def test_options_of_another_form_are_refused_with_the_form(paths, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        main(["circuit", str(paths[0]), *option.split()])
    assert stopped.value.code == 2
    assert "error: argument --" in capsys.readouterr().err


def changed(document, **fields):
    metadata = {**document["metadata"], **fields}
    return {**document, "metadata": metadata}


def test_graphs_of_another_model_are_refused_by_name(paths, tmp_path, server, capsys):
    document = documents()[2]
    path = written(tmp_path, changed(document, scan="gemma-2-2b"), "other")
    assert main(["circuit", str(path), "--strongest", "3", "--url", server.url]) == 1
    said = capsys.readouterr().err
    assert f"model_not_loaded: {path}: model_id 'gemma-2-2b' is not served here" in said
    assert main(["circuit", str(path), str(paths[2]), "--strongest", "3", "--url", server.url]) == 2
    said = capsys.readouterr().err
    assert f"{paths[2]} is of 'demo' with 'demo/transcoders', {path} of 'gemma-2-2b'" in said
    tokens = [*document["metadata"]["prompt_tokens"][:-1], " a", "u"]
    with pytest.raises(WrongFile, match=r"reads its prompt as 5 other tokens than the graph's 6"):
        try_strongest(tmp_path, changed(document, prompt_tokens=tokens))


def test_a_graph_of_another_set_of_the_model_is_refused_before_a_job_is_sent(
    tmp_path, server, capsys
):
    info = {**documents()[2]["metadata"]["info"], "transcoder_set": "demo-crm"}
    path = written(tmp_path, changed(documents()[2], info=info), "other")
    assert main(["circuit", str(path), "--strongest", "3", "--url", server.url]) == 2
    said = capsys.readouterr().err
    assert f"{path} is of the set 'demo-crm', and the worker has 'demo/transcoders'" in said
    assert "running" not in said


def test_a_graph_whose_job_fails_is_named_and_the_others_are_measured(
    paths, tmp_path, server, capsys
):
    odd = changed(documents()[2], attribution_targets=[" nosuchtoken"])
    path = written(tmp_path, odd, "odd")
    line = ["circuit", str(path), *map(str, paths[:2]), "--strongest", "3", "--url", server.url]
    assert main(line) == 1
    said = capsys.readouterr()
    assert f"failed    invalid_input: {path}: targets[0] is ' nosuchtoken'" in said.out
    assert "1 of 3 graphs failed" in said.err
    assert main([*line, "--json"]) == 1
    output = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in output["graphs"]] == [str(path) for path in paths[:2]]
    [failure] = output["failed"]
    assert str(path) in failure


def test_features_that_are_not_active_on_the_worker_are_of_other_transcoders(tmp_path):
    nodes = [
        {**node, "node_id": f"{node['layer']}_{1000 + n}_{node['ctx_idx']}"}
        if node["feature_type"].startswith("cross")
        else node
        for n, node in enumerate(documents()[2]["nodes"])
    ]
    other_set = {**documents()[2], "nodes": nodes, "links": []}
    with pytest.raises(WrongFile, match="none of the set's features is active on this worker"):
        try_strongest(tmp_path, other_set)


def try_strongest(folder, document):
    graph = CircuitGraph.read(written(folder, document))
    return measure(graph, Selection(strongest=3).of(graph), ask, Options(n_random=1))


def test_more_features_than_a_worker_sets_are_refused_before_anything_is_sent(tmp_path):
    node = next(n for n in documents()[2]["nodes"] if n["feature_type"].startswith("cross"))
    nodes = [{**node, "node_id": f"0_{index}_1"} for index in range(10_001)]
    with pytest.raises(WrongFile, match="10001 features, and a worker sets 10000 at most"):
        try_strongest(tmp_path, {**documents()[2], "nodes": nodes, "links": []})


def test_a_worker_that_answers_something_else_is_said_to(paths):
    graph = CircuitGraph.read(paths[2])
    chosen = Selection(strongest=3).of(graph)

    def without_rows(job):
        output = ask(job)
        return {**output, "experiments": output["experiments"][:1]} if "groups" in job else output

    with pytest.raises(Unreachable, match="other experiments than it was asked for"):
        measure(graph, chosen, without_rows, Options(n_random=1))
    with pytest.raises(Unreachable, match="something else than these actions' outputs"):
        measure(graph, chosen, lambda job: {"x": 1}, Options(n_random=1))


def test_what_a_graph_says_can_not_act_on_the_terminal(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    path = written(tmp_path, documents()[2], supernodes=[[ESCAPES]])
    assert main(["circuit", str(path), "--group", "x", "--url", server.url]) == 2
    empty = written(tmp_path, changed(documents()[2], prompt=ESCAPES), "odd")
    assert main(["circuit", str(empty), "--strongest", "2", "--url", server.url]) == 2
    said = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\u202e"} & set(said.out + said.err)


def test_options_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidInput, match="for the metric logit-difference, not for probability"):
        Options(metric="probability", against=(" a",))
