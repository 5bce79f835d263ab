"""The folder of a batch whose file of prompts has changed, or that two workers have worked on."""

import json

from client import main
from remote.batch.prompt_files import read_prompts

PROMPTS = ["Michael Jordan joue au", "Rafael Nadal juega al", "Roger Federer joue au"]


def test_graphs_of_another_model_and_graphs_of_no_row_are_told(server, tmp_path, capsys):
    prompts, runs = tmp_path / "prompts.txt", tmp_path / "runs"

    def said_of(rows):
        prompts.write_text("\n".join(rows))
        assert main(["batch", str(prompts), "--out", str(runs), "--url", server.url]) == 0
        return capsys.readouterr().out

    assert "model   demo with demo/transcoders\n" in said_of(PROMPTS)
    second = read_prompts(prompts, {})[1].name
    record = runs / "rows" / f"{second}.json"
    fields = json.loads(record.read_bytes())
    fields["summary"] |= {"model": "gemma-2-2b", "transcoders": "gemma"}
    record.write_text(json.dumps(fields))
    said = said_of(PROMPTS[:2])
    assert "models  demo with demo/transcoders (1), gemma-2-2b with gemma (1)" in said
    assert "1 graph in graphs/ is of no row of this file" in said
    assert "of no row" not in said_of(PROMPTS)
