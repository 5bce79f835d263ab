"""`client.py export --to png`: the picture that a browser takes of the viewer's page."""

import json
import struct
import zlib

import pytest

from client import main
from tests.support.browser import needs_chromium
from tests.support.demo_worker import ask
from tests.support.neuronpedia import DETAILS, MODEL, SOURCE_SET, neuronpedia


def pixels(png):
    """The coded lines of a PNG's pixels."""
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (1600, 1000)
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return zlib.decompress(data)


@pytest.mark.browser
@needs_chromium
def test_the_picture_is_the_graph_s_own(tmp_path, capsys):
    pictures = []
    for prompt in ("Michael Jordan joue au", "Rafael Nadal juega al"):
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(ask({"prompt": prompt})))
        assert main(["export", str(path), "--to", "png"]) == 0
        assert "graph.png" in capsys.readouterr().out
        pictures.append((tmp_path / "graph.png").read_bytes())
    first, second = map(pixels, pictures)
    assert len(first) == len(second)
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 10_000
    assert not [*tmp_path.glob(".*")]


def test_without_a_browser_one_sentence_says_what_is_needed(tmp_path, capsys, monkeypatch):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(ask({"prompt": "Michael Jordan joue au"})))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", str(path), "--to", "png"]) == 2
    assert "a picture needs Chromium or Chrome" in capsys.readouterr().err
    assert not (tmp_path / "graph.png").exists()


@pytest.mark.browser
@needs_chromium
def test_the_picture_has_labels_when_they_are_asked_for(tmp_path, monkeypatch):
    graph = ask({"prompt": "Michael Jordan joue au"})
    graph["metadata"]["scan"] = MODEL
    graph["metadata"]["feature_details"] = DETAILS
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = {}
    with neuronpedia() as site:
        monkeypatch.setenv("NEURONPEDIA_URL", site.url)
        for node in graph["nodes"]:
            layer, index, _ = node["node_id"].split("_")
            if node["feature_type"] == "cross layer transcoder":
                site.add(f"{layer}-{SOURCE_SET}", int(index), "what this feature does")
        for option in ("--no-labels", "--labels"):
            assert main(["export", str(path), "--to", "png", option]) == 0
            pictures[option] = pixels((tmp_path / "graph.png").read_bytes())
            assert bool(site.asked) == (option == "--labels")
    assert pictures["--no-labels"] != pictures["--labels"]
