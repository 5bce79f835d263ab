"""Conversion at the start of a worker and by command, and what the copy answers."""

import json
import logging
from pathlib import Path

import pytest

import model_loader
from loading import converted
from tests.support.chat_messages import user
from tests.support.conversions import FILES, convert, located
from tests.support.demo_worker import ask, demo_settings, without_times
from tests.support.hub_client import run_command
from tests.support.model_cache import write_repositories
from tests.support.model_hub import Repository, running_hub
from tests.support.programs import imported_by
from tests.support.tiny_families import FAMILIES, write_family
from tests.support.tiny_sets import N_LAYERS, gemma_scope_2
from tests.support.weight_files import MODEL, NAME, storage

TRANSCODER = "cross layer transcoder"  # what features' nodes are called


def start(directory, caches, model, **changed):
    settings = demo_settings(
        model_id=str(model), transcoder_set=str(directory), **caches, **changed
    )
    loaded = model_loader.load(settings)
    return loaded, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Gemma 3, the model of such sets."""
    return write_family(
        tmp_path_factory.mktemp("hub"), FAMILIES["Gemma 3 chat, affine in a folder"]
    )


def is_lazy(loaded):
    dictionary = loaded.model.transcoders
    part = dictionary if hasattr(dictionary, "lazy_decoder") else dictionary[0]
    return part.lazy_encoder, part.lazy_decoder


class TestAtTheStart:
    def test_a_lazy_set_is_converted_and_read_lazily(self, original, caches, model, caplog):
        caplog.set_level(logging.INFO)
        loaded, _ = start(original, caches, model, lazy_encoder=True, lazy_decoder=True)
        assert is_lazy(loaded) == (True, True)
        assert "converted 1 of" in caplog.text
        assert "read from the converted copy" in caplog.text
        caplog.clear()
        start(original, caches, model, lazy_encoder=True)
        assert "converted 1 of" not in caplog.text
        assert "read from the converted copy" in caplog.text

    def test_without_room_it_is_read_whole_and_said(
        self, one_set, caches, model, caplog, monkeypatch
    ):
        monkeypatch.setattr(converted, "MARGIN", 10**15)
        loaded, _ = start(one_set, caches, model, lazy_decoder=True)
        assert is_lazy(loaded) == (False, False)
        assert "read whole instead" in caplog.text
        assert "needs 1,000,000.0 GB" in caplog.text

    def test_an_eager_set_is_not_converted_but_a_copy_is_used(self, one_set, caches, model, caplog):
        caplog.set_level(logging.INFO)
        start(one_set, caches, model, lazy_encoder=False, lazy_decoder=False)
        assert not (Path(caches["hf_home"]) / "converted").exists()
        convert(one_set, caches)
        loaded, _ = start(one_set, caches, model, lazy_encoder=False, lazy_decoder=False)
        assert is_lazy(loaded) == (False, False)
        assert "read from the converted copy" in caplog.text

    def test_a_set_in_circuit_tracer_s_own_layout_is_read_where_it_is(self, caches, caplog):
        caplog.set_level(logging.INFO)
        family = FAMILIES["Llama 3, skip"]
        model = write_family(storage(caches).caches[-1].path, family)
        loaded, _ = start(
            family.transcoder_set, caches, model, lazy_encoder=True, lazy_decoder=True
        )
        assert is_lazy(loaded) == (True, True)
        assert not (Path(caches["hf_home"]) / "converted").exists()
        assert "converted" not in caplog.text

    def test_damaged_originals_stop_the_start(self, one_set, caches, model):
        (one_set / FILES[1]).write_bytes(b"nothing")
        with pytest.raises(model_loader.ModelLoadError, match=f"{FILES[1]} is damaged"):
            start(one_set, caches, model, lazy_encoder=True)

    def test_the_copy_is_read_ahead_after_the_model_where_loading_leaves_parts_on_the_disk(
        self, one_set, caches, model, monkeypatch
    ):
        copy = convert(one_set, caches)
        asked = []
        monkeypatch.setattr("model_loader.read_ahead", asked.append)
        model_loader.read_weights_ahead(
            demo_settings(model_id=str(model), transcoder_set=str(one_set), **caches)
        )
        [files] = asked
        assert files[-N_LAYERS:] == copy.paths
        assert files[0].parent == model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_and_steered_texts_are_the_same_bit_for_bit(
    original, caches, model, monkeypatch, dtype
):
    messages = [user("The capital of France is")]
    graph = {"action": "generate-graph", "messages": messages, "slug_identifier": "test"}
    outputs = [[], []]
    for lazy in (False, True):
        loaded, settings = start(
            original, caches, model, lazy_encoder=lazy, lazy_decoder=lazy, model_dtype=dtype
        )
        assert is_lazy(loaded) == (lazy, lazy)
        monkeypatch.setattr(model_loader, "_loaded", loaded)
        found = without_times(ask(graph, settings))
        node = next(node for node in found["nodes"] if node["feature_type"] == TRANSCODER)
        layer, index, position = map(int, node["node_id"].split("_"))
        feature = {"layer": layer, "index": index, "delta": 3.0}
        where = {"token_active_position": position, "steer_position": position}
        steer = {"action": "steer", "messages": messages, "features": [{**feature, **where}]}
        outputs[lazy] = [found, ask({**steer, "n_tokens": 3}, settings)]
    assert len(outputs[0][0]["nodes"]) > 20
    assert json.dumps(outputs[1]) == json.dumps(outputs[0])


class TestCommands:
    def run(self, monkeypatch, caches, *arguments):
        for name, value in caches.items():
            monkeypatch.setenv(name.upper(), value)
        return model_loader.main(arguments)

    def test_convert_prints_where_the_copy_is(self, one_set, caches, model, monkeypatch, capsys):
        named = ("--model_id", str(model), "--transcoder-set", str(one_set))
        assert self.run(monkeypatch, caches, "convert", *named) == 0
        copy = converted.find(located(one_set, caches), storage(caches))
        assert copy is not None
        *_, line = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{one_set}: 0.00 GB in {copy.folder} (")

    def test_convert_downloads_what_is_not_here_and_imports_no_torch(self, caches):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_16k"
        environment = {key.upper(): value for key, value in caches.items()}
        environment |= {"MODEL_ID": NAME, "TRANSCODER_SET": name, "LOG_LEVEL": "DEBUG"}
        with running_hub() as hub:
            model = {**MODEL, "config.json": b'{"num_hidden_layers": 3}'}
            hub.repositories = {NAME: Repository(model)}
            sets = gemma_scope_2(skip=True)(name)
            hub.repositories |= {key: Repository(files) for key, files in sets.items()}
            done = run_command("convert", url=hub.url, **environment)
        assert done.returncode == 0, done.stderr
        *_, last = done.stdout.splitlines()
        assert last.startswith(f"{name}: 0.00 GB in {caches['hf_home']}/converted/mwhanna--")
        for line in ("downloading", "converting mwhanna--", "converted 3 of 3 files"):
            assert line in done.stderr
        assert not imported_by("import loading.converted", "torch")

    def test_convert_says_where_there_is_nothing_to_do(self, caches, monkeypatch, capsys):
        assert self.run(monkeypatch, caches, "convert") == 0
        assert "nothing to convert" in capsys.readouterr().out

    def test_convert_fails_in_a_sentence(self, one_set, caches, model, monkeypatch, capsys):
        (one_set / FILES[0]).write_bytes(b"nothing")
        named = ("--model_id", str(model), "--transcoder_set", str(one_set))
        assert self.run(monkeypatch, caches, "convert", *named) == 1
        assert capsys.readouterr().err.startswith("convert: ")

    def test_list_tells_what_is_converted(self, caches, monkeypatch, capsys):
        family = FAMILIES["Gemma 2, per layer"]
        write_family(storage(caches).caches[-1].path, family)
        for ending in ("  HF_HOME", "  HF_HOME, converted"):
            assert self.run(monkeypatch, caches, "list") == 0
            lines = capsys.readouterr().out.splitlines()
            (line,) = [line for line in lines if family.transcoder_set in line]
            assert line.endswith(ending)
            convert(family.transcoder_set, caches)

    def test_list_tells_what_a_start_will_convert(self, caches, monkeypatch, capsys):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k_l0_small_affine"
        write_repositories(storage(caches).caches[-1].path, gemma_scope_2(skip=True)(name))
        assert self.run(monkeypatch, caches, "list") == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
        assert line.endswith("transcoders: HF_HOME, not yet converted")
