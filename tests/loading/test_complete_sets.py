"""A complete set is found by its tree, wherever it is, and has a module for every sublayer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loading import WeightsError
from loading.complete_sets import (
    CompleteFiles,
    CompleteWeights,
    complete_files,
    engine_of_set,
    inspect_complete,
    locate_complete,
)
from loading.entry import ModelEntry
from loading.model_folder import ANY_MODEL
from loading.registry import DEMO
from loading.sources import NotHereError, transcoder_files
from tests.support.complete_sets import (
    lorsa_config,
    module_folder,
    transcoder_config,
    write_module,
    write_set,
)
from tests.support.hub_client import run_command
from tests.support.model_cache import commit_of, files_of, write_repository
from tests.support.model_hub import ModelHub, Repository, running_hub
from tests.support.weight_files import MODEL, NAME, PER_LAYER, cache_paths, empty_caches, storage

SET = "OpenMOSS-Team/Llama-Scope-2-Tiny"
TWO_LAYERS = replace(ANY_MODEL, n_layers=2)


@pytest.fixture
def caches(tmp_path: Path) -> dict[str, Any]:
    return empty_caches(tmp_path / "caches")


def _entry(name: str | Path, **changes: Any) -> ModelEntry:
    return ModelEntry(NAME, str(name), "tiny", **{"attribution_engine": None, **changes})


def _tree(tmp_path: Path, n_layers: int = 2, **changes: Any) -> dict[str, bytes]:
    """A set's files by their paths in a repository."""
    write_set(tmp_path / "tree", n_layers, **changes)
    return files_of(tmp_path / "tree")


def _found(entry: ModelEntry, caches: dict[str, Any], n_layers: int | None = 2) -> CompleteFiles:
    return complete_files(entry, storage(caches), replace(TWO_LAYERS, n_layers=n_layers))


class TestDirectory:
    def test_a_set_is_named_by_its_expansion_and_top_k(self, tmp_path, caches):
        entry = _entry(write_set(tmp_path / "set"))
        assert engine_of_set(entry, storage(caches)) == "lm-saes-crm"
        contents = inspect_complete(_found(entry, caches))
        assert [module.layer for module in contents.lorsas] == [0, 1]
        assert [module.kind for module in contents.transcoders] == ["transcoder"] * 2
        assert contents.d_model == 16

    def test_one_of_its_kind_needs_no_expansion_and_top_k(self, tmp_path, caches):
        write_set(tmp_path / "set")
        entry = _entry(tmp_path / "set")
        assert engine_of_set(entry, storage(caches)) == "lm-saes-crm"
        assert len(_found(entry, caches).lorsas) == 2

    def test_of_several_the_ones_there_are_are_named(self, tmp_path, caches):
        write_set(tmp_path / "set")
        write_module(tmp_path / "set/lorsa/8x/k64/a", lorsa_config())
        entry = _entry(tmp_path / "set")
        with pytest.raises(WeightsError, match="put one of 2x/k4, 8x/k64 behind it"):
            _found(entry, caches)

    def test_folder_names_only_locate_files(self, tmp_path, caches):
        name = write_set(tmp_path / "set")
        first, second = (module_folder(tmp_path / "set", "lorsa", layer) for layer in (0, 1))
        first.rename(first.with_name("b"))
        second.rename(second.with_name("a"))
        contents = inspect_complete(_found(_entry(name), caches))
        assert [module.file.parent.name for module in contents.lorsas] == ["b", "a"]

    def test_a_set_of_circuit_tracer_s_is_none(self, tmp_path, caches):
        assert engine_of_set(_entry(DEMO.transcoder_set), storage(caches)) == "circuit-tracer"

    @pytest.mark.parametrize("kind", ["lorsa", "transcoder"])
    def test_a_missing_module_is_named(self, tmp_path, caches, kind):
        name = write_set(tmp_path / "set")
        for file in files_of(folder := module_folder(tmp_path / "set", kind, 1)):
            (folder / file).unlink()
        with pytest.raises(WeightsError, match=f"holds no {kind}/2x/k4/layer1_{kind}_2x_k4/config"):
            _found(_entry(name), caches)

    def test_missing_weights_are_named(self, tmp_path, caches):
        name = write_set(tmp_path / "set")
        (module_folder(tmp_path / "set", "lorsa", 0) / "sae_weights.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"layer0_lorsa_2x_k4/sae_weights\.safetensors"):
            _found(_entry(name), caches)

    def test_a_set_with_lorsas_alone_is_incomplete(self, tmp_path, caches):
        name = write_set(tmp_path / "set", kinds=("lorsa",))
        with pytest.raises(WeightsError, match="holds no transcoder/2x/k4"):
            _found(_entry(name), caches, None)

    def test_lorsas_may_go_with_a_set_of_circuit_tracer_s(self, tmp_path, caches):
        lorsas = write_set(tmp_path / "set", 4, kinds=("lorsa",), d_model=96)
        entry = _entry(DEMO.transcoder_set, lorsa_set=str(lorsas))
        files = _found(entry, caches, 4)
        assert files.transcoders == transcoder_files(DEMO.transcoder_set, storage(caches), 4)
        contents = inspect_complete(files)
        assert (len(contents.lorsas), contents.d_model) == (4, 96)


class TestASetThatIsNone:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_set(tmp_path / "set", 3)
        return tmp_path / "set"

    def _refused(self, root: Path, caches: dict[str, Any], match: str) -> None:
        with pytest.raises(WeightsError, match=match):
            inspect_complete(_found(_entry(root / "2x/k4"), caches, 3))

    def test_two_modules_of_a_layer_are_named(self, root, caches):
        write_module(module_folder(root, "lorsa", 2), lorsa_config(1))
        self._refused(root, caches, "layer1_.* and .*layer2_.* are both the lorsa of layer 1")

    def test_a_layer_without_a_module_is_named(self, root, caches):
        write_module(module_folder(root, "transcoder", 1), transcoder_config(7))
        self._refused(root, caches, "no transcoder in .* is that of layer 1")

    def test_a_module_of_the_other_kind_is_named(self, root, caches):
        write_module(module_folder(root, "lorsa", 1), transcoder_config(1))
        self._refused(root, caches, "describes a transcoder")

    def test_a_module_of_another_width_is_named(self, root, caches):
        write_module(module_folder(root, "lorsa", 1), lorsa_config(1, d_model=32))
        self._refused(root, caches, "layer1_lorsa.* has d_model 32")

    def test_more_layers_of_one_kind_than_of_the_other_are_named(self, root, caches):
        write_module(module_folder(root, "lorsa", 3), lorsa_config(3))
        self._refused(root, caches, "Lorsas of 4 layers and transcoders of 3")


class TestCaches:
    def test_a_set_in_a_cache_is_used_as_it_is(self, tmp_path, caches):
        image, runpod, _ = cache_paths(caches)
        incomplete = {k: v for k, v in _tree(tmp_path).items() if "layer1_lorsa" not in k}
        write_repository(image, SET, incomplete)
        write_repository(runpod, SET, _tree(tmp_path))
        write_repository(runpod, NAME, MODEL)
        offline = storage(caches)._replace(ask_hub=False)
        weights = locate_complete(_entry(f"{SET}/2x/k4"), offline)
        assert isinstance(weights, CompleteWeights)
        assert weights.transcoders.source == "Runpod's cached models"
        assert weights.revisions == (
            f"{NAME}@{commit_of(NAME)}",
            f"{SET}/2x/k4@{commit_of(SET)}",
        )
        again = locate_complete(_entry(weights.revisions[1]), offline)
        assert again.transcoders.folder == weights.transcoders.folder

    @pytest.mark.parametrize(
        "name", [f"{SET}/all/2x/k4", f"{SET}/all/2x/k4@v2", f"hf://{SET}@v2/all/2x/k4"]
    )
    def test_the_tree_may_be_in_a_folder_and_of_a_revision(self, tmp_path, caches, name):
        revision = "v2" if "@" in name else "main"
        files = {f"all/{path}": content for path, content in _tree(tmp_path).items()}
        write_repository(cache_paths(caches)[0], SET, files, revision=revision)
        offline = storage(caches)._replace(ask_hub=False)
        assert engine_of_set(_entry(name), offline) == "lm-saes-crm"
        found = complete_files(_entry(name), offline, TWO_LAYERS)
        assert found.revisions == (f"{SET}/all/2x/k4@{commit_of(SET, revision)}",)

    def test_runpod_writes_a_repository_s_name_in_small_letters(self, tmp_path, caches):
        write_repository(cache_paths(caches)[1], SET.lower(), _tree(tmp_path))
        offline = storage(caches)._replace(ask_hub=False)
        found = complete_files(_entry(f"{SET}/2x/k4"), offline, TWO_LAYERS)
        assert found.source == "Runpod's cached models"

    def test_a_module_whose_weights_are_a_broken_link_is_incomplete(self, tmp_path, caches):
        image, runpod, _ = cache_paths(caches)
        broken = write_repository(image, SET, _tree(tmp_path))
        weights = module_folder(broken, "lorsa", 1) / "sae_weights.safetensors"
        weights.resolve().unlink()
        write_repository(runpod, SET, _tree(tmp_path))
        offline = storage(caches)._replace(ask_hub=False)
        found = complete_files(_entry(f"{SET}/2x/k4"), offline, TWO_LAYERS)
        assert found.source == "Runpod's cached models"

    def test_a_configuration_that_is_a_broken_link_is_absent(self, tmp_path, caches):
        image = cache_paths(caches)[0]
        broken = write_repository(image, SET, _tree(tmp_path))
        (module_folder(broken, "lorsa", 1) / "config.json").resolve().unlink()
        offline = storage(caches)._replace(ask_hub=False)
        with pytest.raises(NotHereError, match="without lorsa/2x/k4/layer1_lorsa_2x_k4/config"):
            complete_files(_entry(f"{SET}/2x/k4"), offline, TWO_LAYERS)

    def test_a_folder_with_a_config_yaml_is_circuit_tracer_s(self, caches):
        files = {f"8x/k64/{name}": content for name, content in PER_LAYER.items()}
        write_repository(cache_paths(caches)[0], SET, files)
        offline = storage(caches)._replace(ask_hub=False)
        assert engine_of_set(_entry(f"{SET}/8x/k64"), offline) == "circuit-tracer"

    def test_a_set_that_is_not_here_is_told_from_its_name(self, caches):
        offline = storage(caches)._replace(ask_hub=False)
        entry = _entry(f"{SET}/32x/k256")
        assert engine_of_set(entry, offline) == "lm-saes-crm"
        with pytest.raises(NotHereError, match="is in none of"):
            complete_files(entry, offline, TWO_LAYERS)

    def test_a_short_name_of_a_known_complete_set_is_explained(self, caches):
        entry = _entry(SET, attribution_engine="lm-saes-crm")
        with pytest.raises(WeightsError, match="use owner/name/<expansion>/<top-k>"):
            complete_files(entry, storage(caches)._replace(ask_hub=False), TWO_LAYERS)


class TestHub:
    @pytest.fixture(scope="class")
    def _running(self) -> Iterator[ModelHub]:
        with running_hub() as hub:
            yield hub

    @pytest.fixture
    def hub(self, _running: ModelHub, tmp_path: Path) -> ModelHub:
        tree = _tree(tmp_path)
        other = {name.replace("2x", "8x").replace("k4", "k64"): b"other" for name in tree}
        _running.repositories = {
            NAME: Repository(MODEL),
            SET: Repository({**tree, **other, "README.md": b"# Set"}),
        }
        _running.requests.clear()
        return _running

    def _prefetch(self, hub: ModelHub, caches: dict[str, Any], name: str) -> Any:
        environment = {key.upper(): str(value) for key, value in caches.items()}
        return run_command(
            *("prefetch", "--model_id", NAME, "--transcoder_set", name),
            HF_ENDPOINT=hub.url,
            **environment,
        )

    def test_only_the_files_of_that_expansion_and_top_k_are_fetched(self, hub, tmp_path, caches):
        done = self._prefetch(hub, caches, f"{SET}/2x/k4")
        assert done.returncode == 0, done.stderr
        assert f"{SET}/2x/k4: 0.00 GB in" in done.stdout
        folder = cache_paths(caches)[-1] / "models--OpenMOSS-Team--Llama-Scope-2-Tiny"
        assert files_of(folder / "snapshots" / commit_of(SET)) == _tree(tmp_path)
        offline = storage(caches)._replace(ask_hub=False)
        assert len(_found(_entry(f"{SET}/2x/k4"), {**caches}).lorsas) == 2
        assert engine_of_set(_entry(f"{SET}/2x/k4"), offline) == "lm-saes-crm"

    def test_an_expansion_that_the_hub_lacks_is_named(self, hub, caches):
        done = self._prefetch(hub, caches, f"{SET}/16x/k64")
        assert done.returncode == 1
        assert f"{SET} has no transcoder/16x/k64/layer0_transcoder_16x_k64" in done.stderr

    def test_the_hub_is_asked_once_what_the_set_is_and_once_for_its_files(self, hub, caches):
        self._prefetch(hub, caches, f"{SET}/16x/k64")
        asked = [
            request for request in hub.requests if request.startswith(f"GET /api/models/{SET}")
        ]
        assert len(asked) == 2

    def test_a_configuration_is_refused_before_weights_are_fetched(self, hub, caches):
        repository = hub.repositories[SET]
        name = "lorsa/2x/k4/layer1_lorsa_2x_k4/config.json"
        config = json.loads(repository.files[name]) | {"act_fn": "batchtopk"}
        repository.files[name] = json.dumps(config).encode()
        done = self._prefetch(hub, caches, f"{SET}/2x/k4")
        assert done.returncode == 1
        assert "layer1_lorsa_2x_k4/config.json has act_fn 'batchtopk'" in done.stderr
        fetched = [r for r in hub.requests if r.endswith("sae_weights.safetensors")]
        assert fetched == []

    def test_pickles_are_refused_before_they_are_fetched(self, hub, caches):
        repository = hub.repositories[SET]
        name = "lorsa/2x/k4/layer1_lorsa_2x_k4/sae_weights"
        repository.files[f"{name}.pt"] = repository.files.pop(f"{name}.safetensors")
        done = self._prefetch(hub, caches, f"{SET}/2x/k4")
        assert done.returncode == 1
        assert "layer1_lorsa_2x_k4/sae_weights.pt: weights are read from safetensors" in done.stderr
        assert not [request for request in hub.requests if request.endswith(".pt")]
