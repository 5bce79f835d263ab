"""What the viewer's server gives, whom it gives it to, and how it begins and ends."""

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import uvicorn

import web_assets
from tests.support.polling import until
from tests.support.programs import ROOT, imported_by, run
from tests.support.viewer_server import showing
from viewer import graph_files
from viewer import server as viewer
from viewer.graph_files import ViewerError, read_graphs
from viewer.page import read_page

METADATA = {
    "slug": "paris",
    "scan": "demo",
    "prompt": "La capitale",
    "prompt_tokens": ["La", " capitale"],
    "node_threshold": 0.8,
}
GRAPH = {"metadata": METADATA, "qParams": {}, "nodes": [], "links": []}


def write(path, graph=None, **metadata):
    graph = graph or {**GRAPH, "metadata": {**METADATA, **metadata}}
    path.write_text(json.dumps(graph))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "graph.json")


def names(paths):
    return [graph.name for graph in read_graphs(paths)]


def get(address, path, **headers):
    """The answer to exactly this path, which `requests` would tidy."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_the_page_refers_to_files_of_web_assets_only():
    page = read_page()
    assert "http" not in page.text.replace("HTTP error", "")
    assert len(page.files) > 20
    for path in page.files.values():
        assert path.is_file()
        assert path.is_relative_to(web_assets.DIRECTORY)


# A script of another version of circuit-tracer may write these otherwise.
MEMBERS = b".appendMany('div.member-circle', d => d.node.memberNodes)"
BOX = b"g.setNode(d.nodeId, {width: nodeWidth, height: nodeHeight"
CLEAR = b"ctx.clearRect(-c.margin.left"
CHANGED = (
    (b".html(`", b".html(markup`"),
    (b"d.feature_type == 'cross layer transcoder'", b"isFeature(d)"),
    (b"d.feature_type != 'cross layer transcoder'", b"!isFeature(d)"),
    (b"if (urlSupernodes)", b"if (util.params.get('supernodes'))"),
    (MEMBERS, MEMBERS + b".classed('lorsa', d => d.feature_type == 'lorsa')"),
    (b"if (urlSupernodes) visState", b"if (util.params.get('supernodes')) visState"),
    (b"nodeIdToNode[label] ?", b"!label || nodeIdToNode[label] ?"),
    (b"if (visState.sg_pos){", b"if (arePlacesOf(selForceNodes, visState.sg_pos)){"),
    (b"d.tmpClickedSourceLink?.pctInput", b"Math.abs(d.tmpClickedSourceLink.weight)"),
    (b"d.tmpClickedTargetLink?.pctInput", b"Math.abs(d.tmpClickedTargetLink.weight)"),
    (b"var nodeWidth = 75", b"var nodeWidth = 96"),
    (BOX + b"})", BOX + b" + selForceNodes.find(e => e.node == d).textHeight})"),
    (b"ys(pos.y) - nodeHeight/2", b"ys(pos.y) - (nodeHeight + node.textHeight)/2"),
    (b"window.dagre.layout(g)", b"window.dagre.layout(g); makeRoom(g, c.width, c.height)"),
    (b"append('span').text(d => d.key)", b"append('span').text(d => subgraphChoice(d.key))"),
    (CLEAR, b"ctx.canvas.drawn = {links, strokeWidthOffset, colorOverride}; " + CLEAR),
    (b"clickedLinks = links.filter(", b"clickedLinks = linksOf(data, visState.clickedId).filter("),
    (b"sgLinks = links\n", b"sgLinks = linksInto(pinnedNodes)\n"),
    (b"link.linkId = link.sourceNode.nodeId + '__' + link.targetNode.nodeId", b""),
    (b"links.idToLink = Object.fromEntries(links.map(d => [d.linkId, d]))", b""),
    (b"links.forEach(d => {\n    var [x1, y1]", b";[].forEach(d => {\n    var [x1, y1]"),
    (
        b"d.color = d3.interpolatePRGn(_linearTScale(_linearPctScale(d.pctInput)))",
        b"d.color = d.pctInputColor",
    ),
    (b"localStorage.", b"sessionStorage."),
)


@pytest.mark.parametrize("written", [written for written, _ in CHANGED])
def test_what_is_served_otherwise_stands_in_circuit_tracer_s_scripts(written):
    scripts = [path for name, path in read_page().files.items() if "circuit-tracer" in name]
    assert any(written in path.read_bytes() for path in scripts)


def test_every_file_of_the_page_is_served_as_what_it_is(file):
    with showing([file]) as address:
        for name, path in read_page().files.items():
            response = requests.get(address + name, timeout=60)
            content = path.read_bytes()
            if "circuit-tracer" in name:  # viewer/page.py says why
                for written, served in CHANGED:
                    content = content.replace(written, served)
            assert response.content == content
            kind = "text/css" if name.endswith(".css") else "text/javascript"
            assert response.headers["Content-Type"].startswith(kind)


def test_nothing_else_is_served(file):
    paths = [
        "/client.py",
        "/pins.json",
        "/vendor/d3/LICENSE",
        "/feature-view.html",
        "/graph_data/other.json",
        "/graph_data/../graph.json",
        "/graph_data/..%2fgraph.json",
        f"/graph_data/{str(file.with_suffix('')).replace('/', '%2f')}.json",
        "/vendor/../../client.py",
        "/vendor/%2e%2e/%2e%2e/client.py",
        "//etc/passwd",
        "/features_of/other/12877.json",
        "/features_of/paris/x.json",
        "/features_of/paris/-1.json",
    ]
    with showing([file]) as address:
        assert [get(address, path)[0] for path in paths] == [404] * len(paths)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_graph_is_never_written(file, method):
    before = file.read_bytes()
    with showing([file]) as address:
        for path in ("save_graph/paris", "graph_data/paris.json"):
            body = {"qParams": {"pinnedIds": "1"}}
            response = requests.request(method, address + path, json=body, timeout=60)
            assert response.status_code == 405
    assert file.read_bytes() == before


def test_a_page_of_another_name_for_this_machine_is_refused(file):
    with showing([file]) as address:
        port = urlsplit(address).port
        assert get(address, "/graph_data/paris.json", Host=f"evil.example:{port}")[0] == 400
        assert get(address, "/graph_data/paris.json", Host=f"localhost:{port}")[0] == 200


def test_the_page_may_ask_no_other_host_and_nothing_is_kept_by_the_browser(file):
    with showing([file]) as address:
        headers = requests.get(address, timeout=60).headers
        document = requests.get(f"{address}graph_data/paris.json", timeout=60).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    assert headers["Cache-Control"] == document["Cache-Control"] == "no-store"


def test_a_large_graph_comes_whole_and_only_its_beginning_is_read_before(tmp_path, monkeypatch):
    path = write(tmp_path / "large.json", {**GRAPH, "links": ["x" * 1_000] * 30_000})
    monkeypatch.setattr(graph_files.orjson, "loads", None)  # what would read it whole
    with showing([path]) as address:
        response = requests.get(f"{address}graph_data/paris.json", timeout=60, stream=True)
        assert int(response.headers["Content-Length"]) == path.stat().st_size > 30_000_000
        assert response.content == path.read_bytes()


def test_a_gzipped_graph_is_served_as_it_is(tmp_path):
    path = tmp_path / "graph.json.gz"
    path.write_bytes(gzip.compress(json.dumps(GRAPH).encode()))
    with showing([path]) as address:
        response = requests.get(f"{address}graph_data/paris.json", timeout=60)
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.json() == GRAPH


def test_graphs_are_listed_in_order_each_under_a_name_of_its_own(tmp_path):
    slugs = ["paris", "paris", "paris-2", "a/../b c", "paris"]
    paths = [write(tmp_path / f"{i}.json", slug=slug) for i, slug in enumerate(slugs)]
    assert names(paths) == ["paris", "paris-2", "paris-2-2", "a-b-c", "paris-3"]
    with showing(paths) as address:
        listed = requests.get(f"{address}data/graph-metadata.json", timeout=60).json()["graphs"]
    assert [graph["slug"] for graph in listed] == names(paths)
    assert {graph["prompt"] for graph in listed} == {"La capitale"}


def test_half_a_character_in_a_prompt_hides_no_graph(tmp_path):
    with showing([write(tmp_path / "graph.json", prompt="\ud83d")]) as address:
        listed = requests.get(f"{address}data/graph-metadata.json", timeout=60).json()["graphs"]
    assert listed == [{"slug": "paris", "scan": "demo", "prompt": "\ud83d", "node_threshold": 0.8}]


def test_metadata_are_found_wherever_they_stand(tmp_path):
    last = {"nodes": [], "links": ["metadata"], "metadata": METADATA}
    long = {**GRAPH, "metadata": {**METADATA, "prompt": "é" * 1_000_000}}
    (tmp_path / "spaced.json").write_text("\n " + json.dumps(GRAPH, indent=4))
    paths = [write(tmp_path / "last.json", last), write(tmp_path / "long.json", long)]
    assert names([*paths, tmp_path / "spaced.json"]) == ["paris", "paris-2", "paris-3"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"metadata": 1}',
        b'{"metadata": {"slug": "s"}}',
        b'{"metadata": {"slug": "s", "scan": "s", "prompt": "p"}}',
        b'{"metadata": {"slug": "s", "scan": 1, "prompt": "p", "prompt_tokens": []}}',
        b"\x1f\x8b",
        gzip.compress(b"[]", mtime=0),
        gzip.compress(json.dumps(GRAPH).encode(), mtime=0)[:-20],
    ],
)
def test_a_file_that_is_no_graph_is_named(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(ViewerError, match=r"graph\.json: "):
        read_graphs([path])


def test_no_file_a_missing_one_and_a_folder_are_said(tmp_path):
    with pytest.raises(ViewerError, match="name the file of a graph"):
        read_graphs([])
    with pytest.raises(ViewerError, match="No such file"):
        read_graphs([tmp_path / "absent.json"])
    with pytest.raises(ViewerError, match="Is a directory"):
        read_graphs([tmp_path])


@pytest.mark.parametrize(
    "content",
    [
        b'{"metadata": ' + b"[" * 100_000,
        b'{"metadata": ' + json.dumps({**METADATA, "info": 1}).replace("1", "9" * 5_000).encode(),
        json.dumps({"metadata": {**METADATA, "node_threshold": float("nan")}}).encode(),
        json.dumps({"metadata": METADATA}).replace("0.8", "1e999").encode(),
        json.dumps({"metadata": METADATA}).replace("0.8", "1" + "0" * 400).encode(),
        json.dumps({"metadata": {**METADATA, "title_prefix": {}}}).encode(),
    ],
)
def test_metadata_that_no_page_could_read_are_refused(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(ViewerError, match=r"graph\.json: no graph document"):
        read_graphs([path])


def test_a_file_that_unpacks_to_much_before_its_metadata_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_files, "_LARGEST_READ_WHOLE", 5_000_000)
    path = tmp_path / "graph.json.gz"
    path.write_bytes(gzip.compress(b" " * 20_000_000 + json.dumps(GRAPH).encode()))
    with pytest.raises(ViewerError, match="put `metadata` first"):
        read_graphs([path])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ViewerError, match="save it in one first"):
            read_graphs([path])


def test_a_long_slug_is_cut_in_the_address(tmp_path):
    paths = [write(tmp_path / f"{i}.json", slug="a" * 10_000) for i in range(2)]
    assert names(paths) == ["a" * 100, "a" * 100 + "-2"]


def test_what_is_gone_or_was_never_there_is_not_found_and_nothing_is_logged(file, capfd):
    with showing([file]) as address:
        assert get(address, f"/features_of/paris/{'9' * 5_000}.json")[0] == 404
        file.unlink()
        assert get(address, "/graph_data/paris.json")[0] == 404
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_port_that_is_none_is_refused(file, port):
    with pytest.raises(ViewerError, match=f"port {port}: "):
        viewer.view([file], port=port, open_browser=False)


def test_a_taken_port_is_refused(file):
    with showing([file]) as address, pytest.raises(ViewerError, match="in use; name another"):
        viewer.view([file], port=urlsplit(address).port, open_browser=False)


def test_the_browser_is_opened_at_the_page_once_it_can_be_had(file, monkeypatch, capsys):
    opened, answers = [], []
    servers = []
    run = uvicorn.Server.run

    def remembered(server, **given):
        servers.append(server)
        run(server, **given)

    def open_page(url):
        opened.append(url)
        answers.append(requests.get(url, timeout=60).status_code)

    monkeypatch.setattr(uvicorn.Server, "run", remembered)
    monkeypatch.setattr(webbrowser, "open", open_page)
    thread = threading.Thread(
        target=viewer.view, args=([file],), kwargs={"port": 0, "open_browser": True}
    )
    thread.start()
    until(lambda: answers)
    servers[0].should_exit = True
    thread.join()
    assert answers == [200]
    assert f"1 graph at {opened[0]} " in capsys.readouterr().out


def test_ctrl_c_ends_the_program_cleanly_even_with_a_reader(file):
    program = [sys.executable, "client.py", "view", str(file), "--no-browser"]
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        address = running.stdout.readline().split(" at ")[1].split()[0]
        with requests.Session() as reader:  # keeps its connection open
            assert reader.get(address, timeout=60).status_code == 200
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""


def test_the_program_says_what_is_wrong_in_a_line():
    done = run("client.py", "view", "absent.json")
    assert done.returncode == 2
    assert done.stderr == "error  absent.json: No such file or directory\n"


def test_importing_it_loads_no_torch_and_not_the_library():
    program = "from viewer.server import read_page; read_page()"
    assert not imported_by(program, "torch", "circuit_tracer", "transformers")
