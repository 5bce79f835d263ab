"""The options of `client.py` become the fields of a job."""

import json
import shlex

from remote.command_line.arguments import parse
from schemas import parse_request


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


def test_messages_are_read_from_a_file(tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    for content in (messages, {"messages": messages}):
        (tmp_path / "chat.json").write_text(json.dumps(content))
        job = parse(["forward-pass", "--messages", str(tmp_path / "chat.json")]).job
        assert job == {"action": "forward-pass", "messages": messages}


def test_an_intervention_s_options_become_the_job_s_fields():
    line = "intervene hello --group 'a b=1:2:3, 4:5:6' --group c=0:1:2 --experiment 'a b*-0.5,c=3'"
    line += " --experiment c*0 --target ' x' --constrained-layers 0-3 --no-freeze-attention"
    job = parse(shlex.split(line + " --top-k 2")).job
    assert job == {
        "action": "intervene",
        "prompt": "hello",
        "groups": {
            "a b": [
                {"layer": 1, "index": 2, "position": 3},
                {"layer": 4, "index": 5, "position": 6},
            ],
            "c": [{"layer": 0, "index": 1, "position": 2}],
        },
        "experiments": [
            [{"group": "a b", "scale": -0.5}, {"group": "c", "value": 3.0}],
            [{"group": "c", "scale": 0.0}],
        ],
        "targets": [" x"],
        "constrained_layers": [0, 3],
        "freeze_attention": False,
        "top_k": 2,
    }
    parse_request(job)
    held = parse(
        shlex.split("intervene a --group b=1:1:1 --experiment b*0 --constrained-layers all")
    )
    assert held.job["constrained_layers"] == "all"


def test_a_contrast_s_options_become_the_job_s_fields():
    line = "contrast 'joue au' 'juega al' --position 3 --other-position 2 --top-k 5 --n-steer 1"
    job = parse(shlex.split(line + " --strength 2.5")).job
    assert job == {
        "action": "contrast",
        "prompt": "joue au",
        "other_prompt": "juega al",
        "position": 3,
        "other_position": 2,
        "top_k": 5,
        "n_steer": 1,
        "strength": 2.5,
    }
    parse_request(job)
