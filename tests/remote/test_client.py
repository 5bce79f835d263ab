"""client.py's command line: what it reads, what it says, how it ends."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from client import main
from remote.arguments import parse
from schemas import SteerFeature, TargetDifference, TargetFeature, parse_request
from tests.support.demo_worker import PROMPT
from tests.support.programs import ROOT, imported_by
from tools.documents import read

PAGE = read("docs/client.md")

positions = st.integers(0, 10**6)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory of its own, without a `.env` file, and none of the client's variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("RUNPOD_API_KEY", "SECRET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_importing_it_needs_no_torch_and_none_of_the_worker_s_servers():
    heavy = ("torch", "transformers", "runpod", "fastapi", "uvicorn", "settings", "actions")
    assert not imported_by("import client", *heavy)


COMMANDS = [
    line.removeprefix(".venv/bin/python client.py ")
    for line in PAGE.replace("\\\n", "").split("```sh")[1].split("```")[0].splitlines()
    if line.startswith(".venv/bin/python client.py ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_s_commands_do_what_they_say(command, server, workplace, capsys):
    assert main([*shlex.split(command, comments=True), "--url", server.url]) == 0
    said = capsys.readouterr().out
    expected = {
        "graph": "graph   out/michael-jordan-joue-au",
        "steer": '" baloncesto"',
        "forward-pass": '4         " au"',
        "parse-chat-prompt": "positions that can't be steered: 0",
        "contrast": "--feature 2:146:4=+10.79",
        "intervene": '" baloncesto" 0.7024',
        "health": "model        demo",
    }
    assert expected[command.split()[0]] in said


def test_the_page_s_commands_are_there():
    assert len(COMMANDS) >= 4


def test_the_page_s_python_runs(server, workplace):
    program = PAGE.split("```python")[1].split("```")[0]
    program = program.replace("http://localhost:5004", server.url)
    assert server.url in program
    names = {}
    exec(program, names)
    assert names["graph"]["metadata"]["prompt"].endswith(PROMPT)
    assert " baloncesto" in names["steered"].STEERED_GENERATION


def test_a_graph_s_options_become_the_job_s_fields():
    line = "graph hello --slug-identifier a --max-n-logits 3 --desired-logit-prob 0.9 --compress"
    line += " --max-feature-nodes 5 --node-threshold 0.5 --edge-threshold 0.6 --batch-size 2"
    line += " --signed-url http://a/b --signed-header x-amz-acl:private --signed-header 'b: c:d'"
    line += " --attribution-target ' basket' --attribution-target ' tennis' --user-id someone"
    job = parse(shlex.split(line)).job
    assert job == {
        "action": "generate-graph",
        "prompt": "hello",
        "slug_identifier": "a",
        "max_n_logits": 3,
        "desired_logit_prob": 0.9,
        "compress": True,
        "max_feature_nodes": 5,
        "node_threshold": 0.5,
        "edge_threshold": 0.6,
        "batch_size": 2,
        "signed_url": "http://a/b",
        "signed_headers": {"x-amz-acl": "private", "b": "c:d"},
        "attribution_targets": [" basket", " tennis"],
        "user_id": "someone",
    }
    parse_request(job)


def test_targets_of_all_kinds_keep_the_order_in_which_they_are_given():
    line = "graph hello --attribution-feature 2:157:4 --attribution-target ' basket'"
    line += " --attribution-difference ' basket' ' tennis' --attribution-feature 3:9:1:lorsa"
    line += """ --attribution-difference '[" a", " b"]' '[" c"]' --attribution-target '[" a"]'"""
    job = parse(shlex.split(line)).job
    assert job["attribution_targets"] == [
        {"layer": 2, "index": 157, "position": 4},
        " basket",
        {"plus": [" basket"], "minus": [" tennis"]},
        {"layer": 3, "index": 9, "position": 1, "kind": "lorsa"},
        {"plus": [" a", " b"], "minus": [" c"]},
        '[" a"]',
    ]
    parse_request(job)


@given(positions, positions, positions, st.sampled_from([None, "lorsa", "transcoder"]))
def test_a_target_feature_is_read_as_it_is_written(layer, index, position, kind):
    text = ":".join(str(part) for part in (layer, index, position, kind) if part is not None)
    job = parse(["graph", "a", "--attribution-feature", text]).job
    [target] = parse_request(job).attribution_targets
    assert target == TargetFeature(
        layer=layer, index=index, position=position, kind=kind or "transcoder"
    )


tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda token: not token.startswith(("-", "["))
)


@given(st.lists(tokens, min_size=1, max_size=3), st.lists(tokens, min_size=1, max_size=3))
def test_a_difference_is_read_as_it_is_written(plus, minus):
    sides = [side[0] if len(side) == 1 else json.dumps(side) for side in (plus, minus)]
    job = parse(["graph", "a", "--attribution-difference", *sides]).job
    [target] = parse_request(job).attribution_targets
    assert target == TargetDifference(plus=plus, minus=minus)


@pytest.mark.parametrize("feature", ["", "1", "1:2", "1:2:x", "-1:2:3", "1:2:3:mlp", "1:2:3=0"])
def test_a_target_feature_that_is_not_one_is_explained(feature, capsys):
    with pytest.raises(SystemExit) as exited:
        parse(["graph", "a", f"--attribution-feature={feature}"])
    assert exited.value.code == 2
    assert "LAYER:INDEX:POSITION" in capsys.readouterr().err


def test_a_steer_s_options_become_the_job_s_fields():
    line = "steer hello --feature 1:2:3=0 --n-tokens 4 --top-k 2 --temperature 0.5 --seed 7"
    line += " --freq-penalty 0.25 --freeze-attention --steered-output-only --model-id demo"
    job = parse(shlex.split(line)).job
    assert job.pop("features")
    assert job == {
        "action": "steer",
        "prompt": "hello",
        "n_tokens": 4,
        "top_k": 2,
        "temperature": 0.5,
        "seed": 7,
        "freq_penalty": 0.25,
        "freeze_attention": True,
        "steered_output_only": True,
        "model_id": "demo",
    }


deltas = st.floats(allow_nan=False, allow_infinity=False)


kinds = st.sampled_from([None, "lorsa", "transcoder"])


@given(
    kinds,
    positions,
    positions,
    positions,
    st.none() | positions | st.just("new"),
    st.none() | deltas,
)
def test_a_feature_is_read_as_it_is_written(kind, layer, index, read, changed, delta):
    of_kind = f"{kind}:" if kind else ""
    at = "" if changed is None else f"@{changed}"
    change = "0" if delta is None else f"{delta:+}"
    job = parse(["steer", "a", "--feature", f"{of_kind}{layer}:{index}:{read}{at}={change}"]).job
    [feature] = parse_request(job).features
    assert feature == SteerFeature(
        layer=layer,
        index=index,
        kind=kind,
        token_active_position=read,
        steer_position=None if changed == "new" else read if changed is None else changed,
        steer_generated_tokens=changed == "new",
        ablate=delta is None,
        delta=delta,
    )


@pytest.mark.parametrize(
    "feature",
    [
        "2:157:4",
        "2:157=0",
        "2:157:4=10",
        "2:157:4@x=0",
        "a:1:2=0",
        "1:2:3=+",
        "1:2:3=+1e",
        "sae:1:2:3=0",
    ],
)
def test_a_feature_written_otherwise_is_refused_with_the_form_it_has_to_have(feature, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["steer", "a", "--feature", feature])
    assert caught.value.code == 2
    assert "LAYER:INDEX:POSITION=CHANGE" in capsys.readouterr().err


def test_a_steer_without_features_is_the_baseline(server, capsys):
    assert parse(["steer", "hello"]).job == {"action": "steer", "prompt": "hello", "features": []}
    assert main(["steer", PROMPT, "--n-tokens", "2", "--url", server.url]) == 0
    assert "no prediction changed" in capsys.readouterr().out


def test_messages_are_read_from_a_file(tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    for content in (messages, {"messages": messages}):
        (tmp_path / "chat.json").write_text(json.dumps(content))
        job = parse(["forward-pass", "--messages", str(tmp_path / "chat.json")]).job
        assert job == {"action": "forward-pass", "messages": messages}


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("graph", 2, "exactly one of prompt and messages"),
        ("graph hello --node-threshold 2", 2, "node_threshold: input should be less than"),
        ("graph hello --url ftp://host", 2, "'ftp://host' is no http(s) URL"),
        ("graph hello --endpoint abc", 2, "set RUNPOD_API_KEY"),
        ("graph " + "a" * 400, 1, "prompt_too_long: "),
        ("graph hello --server sdk", 2, "is not the SDK's local API"),
        ("status abc", 2, "only a Runpod endpoint has; name one with --endpoint"),
        ("graph hello -o /proc/none/graph.json", 2, "/proc/none"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    line, code, words, server, workplace, capsys
):
    where = [] if "--endpoint" in line or "--url" in line else ["--url", server.url]
    assert main([*shlex.split(line), *where]) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error  ")
    assert words in error


def test_the_key_stays_out_of_what_is_said(workplace, monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_API_KEY", "planted-key")
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", "http://planted.invalid/v2")
    assert main(["graph", PROMPT, "--endpoint", "abc"]) == 3
    said = capsys.readouterr()
    assert "planted-key" not in said.out + said.err


def test_json_is_the_output_alone(server, workplace, capfdbinary):
    assert main(["forward-pass", PROMPT, "--json", "--url", server.url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["salient_logits"]
    assert main(["graph", PROMPT, "--json", "--url", server.url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["nodes"]
    assert not list(workplace.iterdir())


def test_view_serves_a_graph_until_ctrl_c(server, workplace):
    assert main(["graph", PROMPT, "-o", "graph.json", "--url", server.url]) == 0
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "client.py"), "view", "graph.json", "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
    )
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    assert requests.get(url, timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_a_file_that_is_no_graph_is_not_viewed(workplace, capsys):
    assert main(["view", "nothing.json"]) == 2
    assert capsys.readouterr().err.startswith("error  nothing.json: ")
