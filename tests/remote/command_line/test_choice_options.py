"""Fields of a request that take a few texts are options of the command line with these choices."""

import pytest

from remote.command_line.arguments import parse
from schemas import parse_request


@pytest.mark.parametrize("command", ["graph", "batch"])
def test_a_graph_s_groups_are_asked_for_with_an_option(command, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\nhello\n")
    subject = ["hello"] if command == "graph" else [str(prompts), "--out", str(tmp_path / "runs")]
    job = parse([command, *subject, "--supernodes", "auto"]).job
    assert job["supernodes"] == "auto"
    assert "supernodes" not in parse([command, *subject]).job
    parse_request({"prompt": "hello", **job})


def test_another_way_to_group_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit):
        parse(["graph", "hello", "--supernodes", "some"])
    said = capsys.readouterr().err
    assert "none" in said
    assert "auto" in said


def test_the_form_of_a_steer_s_predictions_is_the_client_s_own(capsys):
    with pytest.raises(SystemExit):
        parse(["steer", "hello", "--logits-format", "objects"])
    assert "--logits-format" in capsys.readouterr().err
