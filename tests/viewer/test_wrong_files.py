"""What `view` says of a file that is no graph document: what it is, and what to do."""

import json
import struct
import zlib

import pytest
import torch

from client import main

JOB = {"input": {"action": "generate-graph", "prompt": "Michael Jordan joue au"}}
RECEIPT = {"success": "Graph uploaded", "url": "https://store/graph.json", "sha256": "0" * 64}
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
HALF = json.dumps({"metadata": {"slug": "a"}, "nodes": [1, 2, 3]}).encode()[:40]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty; `client.py graph PROMPT -o FILE` makes one"),
        (PNG, "it is a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is a picture"),
        (b"<?xml version='1.0'?>\n<graphml/>", "it is an export; name the graph document"),
        (b"node_id,layer\n1_2_3,1\n", "it is no JSON"),
        (json.dumps(JOB).encode(), "it is a job, not its output"),
        (json.dumps(RECEIPT).encode(), "it is a receipt; name the file that was uploaded"),
        (HALF, "its JSON ends too soon or is broken; fetch it again"),
        (b'{"nodes": [], "links": []}', "its metadata lack what a graph's have"),
        (b'{"nodes": [], "more": "' + b"x" * 2_000_000 + b'"}', "its metadata lack what a graph's"),
    ],
)
def test_a_wrong_file_is_called_what_it_is(tmp_path, capsys, content, words):
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    assert main(["view", str(path), "--no-browser"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"wrong.json: no graph document: {words}" in said


def test_circuit_tracer_s_own_file_is_called_so(tmp_path, capsys):
    path = tmp_path / "graph.pt"
    torch.save({"adjacency_matrix": torch.zeros(2, 2)}, path)
    assert main(["view", str(path), "--no-browser"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it is circuit-tracer's own file of a graph" in said
    assert "`client.py graph` without `--format pt` makes that" in said


def test_a_port_that_is_none_is_refused_with_the_bounds(tmp_path, capsys):
    path = tmp_path / "graph.json"
    metadata = {"slug": "a", "scan": "demo", "prompt": "a", "prompt_tokens": ["a"]}
    path.write_text(json.dumps({"metadata": metadata}))
    with pytest.raises(SystemExit) as stopped:
        main(["view", str(path), "--no-browser", "--port", "80808"])
    assert stopped.value.code == 2
    assert "'80808' is no port; it is a number from 0 to 65535" in capsys.readouterr().err
