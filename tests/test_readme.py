"""The README and the pages in docs/ say what the code does."""

import contextlib
import io
import json
import re

import pytest
import torch
from rich.console import Console

import errors
from attribution import attribute
from loading.registry import REGISTRY
from model_loader import get_model
from prompting.prompts import tokenize
from remote.terminal.graph_summary import print_graph
from settings import Settings, get_settings
from tests.support.demo_worker import ask
from tests.support.programs import ROOT
from tests.support.traced_demo import serving_complete_demo
from tools.documents import PAGES, blocks, links, read, rows
from tools.house import OUTSIDE, ROOMS, read_house

TEST_INPUT = json.loads((ROOT / "test_input.json").read_text())["input"]
WALKED = re.findall(r"`([\w/]+\.py)`:\s+`(\w+)(?:\.(\w+))?`", read("docs/architecture.md"))


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(read("README.md").splitlines()) < 250
    assert {path for path, _ in links("README.md")} >= set(PAGES)


def test_the_settings_table_has_every_setting_with_its_default_and_meaning():
    table = rows("docs/settings.md", "setting")
    assert set(table) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, meaning = table[name.upper()]
        assert meaning == field.description
        shown = {None: "none", (): "none"}.get(field.default, str(field.default))
        assert default.strip("`") == shown


def test_the_error_table_has_every_code():
    codes = {error.code for error in errors.WorkerError.__subclasses__()}
    assert set(rows("docs/actions.md", "code")) == codes


@pytest.mark.parametrize("entry", REGISTRY)
def test_every_known_model_and_its_transcoders_are_listed(entry):
    models = read("docs/models.md")
    assert f"`{entry.model}`" in models
    assert f"`{entry.transcoder_set}`" in models


def test_the_picture_of_the_architecture_has_every_room_in_the_order_of_imports():
    picture = read("docs/architecture.md").split("## The rooms", 1)[1].split("```")[1]
    lines = picture.strip().splitlines()
    names = [line.split()[0].removesuffix("/").removesuffix(".py") for line in lines]
    assert names == [*ROOMS, *(name for name in OUTSIDE if name != "tests")]


def test_the_picture_of_the_client_s_folders_is_in_the_order_of_their_imports():
    picture = read("docs/architecture.md").split("The folders of `remote/`", 1)[1].split("```")[1]
    order = [line.split()[0].removesuffix("/") for line in picture.strip().splitlines()]
    house = read_house(ROOT)
    folders = {module: module.split(".")[1] for module in house.lines if is_in_a_folder(module)}
    assert set(order) == {*folders.values()}
    for module in (module for module in house.lines if module.startswith("remote")):
        floor = order.index(folders[module]) if module in folders else len(order)
        for imported in house.imports[module] & folders.keys():
            assert order.index(folders[imported]) >= floor, f"{module} imports {imported}"


def is_in_a_folder(module):
    return module.startswith("remote.") and module.count(".") == 2


@pytest.mark.parametrize(("path", "name", "member"), WALKED)
def test_the_walks_through_the_code_name_what_is_there(path, name, member):
    source = (ROOT / path).read_text()
    for part in filter(None, (name, member)):
        assert re.search(rf"^ *(async )?(def|class) {part}\b|^{part}\b.*=", source, re.M), part


def test_the_walks_are_there():
    assert len(WALKED) > 40


def test_the_graph_that_the_readme_reads_is_the_demo_model_s(tmp_path, monkeypatch):
    [program] = [block.text for block in blocks("README.md") if block.language == "python"]
    after = [block.text for block in blocks("README.md")]
    expected = after[after.index(program) + 1]
    graph = ask(TEST_INPUT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "michael-jordan-joue-au.json").write_text(json.dumps(graph))
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert printed.getvalue() == expected


def test_the_summary_that_the_readme_shows_is_the_demo_model_s(tmp_path, capsys):
    [shown] = [block.text for block in blocks("README.md") if "Strongest features" in block.text]
    path = tmp_path / "graph.json"
    path.write_text("{}")
    print_graph(Console(width=80, highlight=False, emoji=False), ask(TEST_INPUT), path)
    summary = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    tables = shown.split("\nnodes ")[0]
    assert tables in summary
    assert max(map(len, tables.splitlines())) <= 80


def test_the_numbers_that_the_readme_explains_are_the_demo_model_s():
    reading = read("README.md").split("## Read a graph")[1].split("\n## ")[0]
    graph = ask(TEST_INPUT)
    scores = graph["metadata"]["graph_scores"]
    for score in scores.values():
        assert f"{score:.3f}" in reading
    [probability] = [n["token_prob"] for n in graph["nodes"] if n["node_id"] == "5_484_4"]
    assert f"{probability:.1%}" in reading
    weights = {
        link["source"]: link["weight"] for link in graph["links"] if link["target"] == "2_157_4"
    }
    for source in ("1_120_4", "0_110_4", "E_383_3", "E_719_2"):
        assert f"({weights[source]:.2f})" in reading
    loaded = get_model(get_settings())
    ids = torch.tensor(tokenize(TEST_INPUT["prompt"], loaded.tokenizer))
    active = attribute(ids, loaded.model, max_feature_nodes=1).active_features
    assert f"{len(active)} features that are active" in reading
    kinds = [node["feature_type"] for node in graph["nodes"]]
    assert f"kept the {kinds.count('cross layer transcoder')}" in " ".join(reading.split())


def test_what_the_readme_shows_of_attention_is_the_complete_demo_s_summary(tmp_path, capsys):
    section = read("README.md").split("## Attention as features")[1].split("\n## ")[0]
    job, *shown = re.findall(r"^```(?:sh)?\n(.*?)^```$", section, re.M | re.S)
    body = json.loads(job.split("--test_input '")[1].rstrip().removesuffix("'"))["input"]
    with serving_complete_demo() as settings:
        graph = ask(body, settings)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    print_graph(Console(width=80, highlight=False, emoji=False), graph, path)
    summary = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    [of_attention] = shown
    [traced] = [block.text for block in blocks("demo/README.md") if "query  +" in block.text]
    assert of_attention in summary
    assert traced in summary
