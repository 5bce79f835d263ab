"""Where weights are found, in which order, and what is said when they can't be had."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loading import WeightsError, sources
from loading.references import Reference
from loading.selection import select
from settings import read_settings
from tests.support.model_cache import commit_of, write_repository
from tests.support.weight_files import (
    CONFIG,
    CROSS_LAYER,
    MODEL,
    NAME,
    PER_LAYER,
    SET,
    cache_paths,
    in_folder,
    listing,
    storage,
)


class TestOrder:
    def test_a_directory_comes_before_every_cache(self, caches, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for cache in cache_paths(caches):
            write_repository(cache, NAME, MODEL)
        shutil.copytree(
            cache_paths(caches)[0] / "models--google--gemma-2-2b/snapshots" / commit_of(NAME), NAME
        )
        assert str(sources.model_files(NAME, storage(caches)).folder) == NAME

    def test_then_the_image_then_runpod_then_hf_home(self, caches):
        labels = []
        for cache in cache_paths(caches):
            write_repository(cache, NAME, MODEL)
        for cache in cache_paths(caches):
            found = sources.model_files(NAME, storage(caches))
            assert found.folder == (
                cache / "models--google--gemma-2-2b/snapshots" / commit_of(NAME)
            )
            labels.append(found.source)
            shutil.rmtree(cache)
        assert labels == ["image", "Runpod's cached models", "HF_HOME"]

    def test_an_incomplete_copy_gives_way_to_a_complete_one(self, caches):
        image, runpod, _ = cache_paths(caches)
        shard = write_repository(image, NAME, MODEL) / "model-00002-of-00002.safetensors"
        shard.resolve().unlink()
        write_repository(runpod, NAME, MODEL)
        assert sources.model_files(NAME, storage(caches)).source == "Runpod's cached models"

    def test_model_and_transcoders_may_be_in_different_caches(self, caches):
        image, runpod, _ = cache_paths(caches)
        write_repository(runpod, NAME, MODEL)
        write_repository(image, SET, PER_LAYER)
        weights = sources.locate(NAME, SET, storage(caches))
        assert weights.model.is_relative_to(runpod)
        assert weights.transcoders.folder.is_relative_to(image)

    def test_hf_home_on_runpod_s_volume_is_one_cache(self, caches):
        caches["hf_home"] = str(cache_paths(caches)[1].parent)
        assert len(storage(caches).caches) == 2

    def test_an_unfinished_transcoder_set_is_recognised_by_the_model_s_layers(self, caches):
        image, runpod, _ = cache_paths(caches)
        write_repository(image, SET, {k: v for k, v in PER_LAYER.items() if "1" not in k})
        write_repository(runpod, SET, PER_LAYER)
        assert sources.transcoder_files(SET, storage(caches), 2).folder.is_relative_to(runpod)


class TestCacheLayout:
    def test_a_revision_is_found_by_its_ref_and_by_its_commit(self, caches):
        home = cache_paths(caches)[-1]
        first = write_repository(home, NAME, MODEL, revision="v1")
        write_repository(home, NAME, MODEL, revision="v2")
        assert sources.model_files(f"{NAME}@v1", storage(caches)).folder == first
        by_commit = f"{NAME}@{commit_of(NAME, 'v1')}"
        assert sources.model_files(by_commit, storage(caches)).folder == first

    def test_a_copy_without_refs_is_used_for_main(self, caches):
        home = cache_paths(caches)[-1]
        snapshot = write_repository(home, NAME, MODEL, refs=False)
        assert sources.model_files(NAME, storage(caches)).folder == snapshot

    def test_an_empty_ref_is_none(self, caches):
        snapshot = write_repository(cache_paths(caches)[-1], NAME, MODEL)
        (snapshot.parent.parent / "refs/main").write_text("")
        found = sources.model_files(NAME, storage(caches))
        assert (found.folder, found.source) == (snapshot, "HF_HOME")

    def test_names_in_small_letters_are_found(self, caches):
        runpod = cache_paths(caches)[1]
        write_repository(runpod, "qwen/qwen3-4b", MODEL)
        assert sources.model_files("Qwen/Qwen3-4B", storage(caches)).folder.is_relative_to(runpod)

    def test_a_set_in_a_folder_of_its_repository(self, caches):
        home = cache_paths(caches)[-1]
        snapshot = write_repository(home, SET, in_folder(PER_LAYER, "all/width_16k"))
        files = sources.transcoder_files(f"{SET}/all/width_16k", storage(caches))
        assert files.paths == [
            snapshot / "all/width_16k/layer_0.safetensors",
            snapshot / "all/width_16k/layer_1.safetensors",
        ]
        assert files.scan == f"{SET}//all/width_16k"

    def test_a_cross_layer_transcoder_needs_its_decoders(self, caches):
        home = cache_paths(caches)[-1]
        snapshot = write_repository(home, SET, CROSS_LAYER)
        files = sources.transcoder_files(SET, storage(caches))
        assert files.layers == tuple(
            (snapshot / f"W_enc_{i}.safetensors", snapshot / f"W_dec_{i}.safetensors")
            for i in (0, 1)
        )
        (snapshot / "W_dec_1.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"without W_dec_1\.safetensors"):
            sources.transcoder_files(SET, storage(caches))

    def test_listed_files_are_found_in_the_repositories_they_name(self, caches):
        image, _, home = cache_paths(caches)
        addresses = ["hf://google/scope/layer_0/params.npz",
                     "hf://google/scope/layer_1/params.npz?revision=v2"]  # fmt: skip
        write_repository(image, SET, {"config.yaml": listing(*addresses)})
        main = write_repository(home, "google/scope", {"layer_0/params.npz": b"0"})
        other = write_repository(image, "google/scope", {"layer_1/params.npz": b"1"}, revision="v2")
        files = sources.transcoder_files(SET, storage(caches), 2)
        assert files.paths == [main / "layer_0/params.npz", other / "layer_1/params.npz"]

    def test_a_directory_may_list_files_beside_its_configuration(self, caches, tmp_path):
        (tmp_path / "config.yaml").write_bytes(listing("first.safetensors"))
        (tmp_path / "first.safetensors").write_bytes(b"")
        files = sources.transcoder_files(str(tmp_path), storage(caches))
        assert files.paths == [tmp_path / "first.safetensors"]


class TestRevisions:
    """Which commit each repository's files are from."""

    def test_a_cache_s_refs_name_the_commit(self, caches):
        image, runpod, home = cache_paths(caches)
        write_repository(home, NAME, MODEL, revision="v1")
        config = listing("hf://google/scope/0.npz", "hf://google/scope/1.npz")
        write_repository(runpod, SET, {"a/b/config.yaml": config})
        write_repository(image, "google/scope", {"0.npz": b"0", "1.npz": b"1"})
        weights = sources.locate(f"{NAME}@v1", f"{SET}/a/b", storage(caches))
        assert weights.revisions == (
            f"{NAME}@{commit_of(NAME, 'v1')}",
            f"{SET}/a/b@{commit_of(SET)}",
            f"google/scope@{commit_of('google/scope')}",
        )
        again = sources.locate(*weights.revisions[:2], storage(caches))
        assert again.revisions == weights.revisions

    def test_a_directory_has_none(self, caches, tmp_path):
        for name, content in {**MODEL, **PER_LAYER}.items():
            (tmp_path / name).write_bytes(content)
        assert sources.locate(str(tmp_path), str(tmp_path), storage(caches)).revisions == ()


class TestSentences:
    """What is said without the hub; the tests' own process is in offline mode."""

    def test_offline_with_nothing_cached(self, caches):
        with pytest.raises(WeightsError) as raised:
            sources.model_files(NAME, storage(caches))
        message = str(raised.value)
        assert f"{NAME} is in none of {caches['image_weights']}" in message
        assert (
            "HF_HUB_OFFLINE is set: unset it, or run `python model_loader.py prefetch`" in message
        )

    def test_offline_with_a_file_missing_from_the_snapshot(self, caches):
        home = cache_paths(caches)[-1]
        (write_repository(home, NAME, MODEL) / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"without model-00002-of-00002\.safetensors"):
            sources.model_files(NAME, storage(caches))

    @pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
    def test_a_directory_without_a_file_is_told_which(self, caches, tmp_path, missing):
        for name, content in MODEL.items():
            if name != missing:
                (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"holds no {missing}: complete it"):
            sources.model_files(str(tmp_path), storage(caches))

    @pytest.mark.parametrize("damaged", ["config.json", "model.safetensors.index.json"])
    def test_a_file_that_is_no_json_is_named(self, caches, tmp_path, damaged):
        for name, content in MODEL.items():
            (tmp_path / name).write_bytes(content[:-1] if name == damaged else content)
        with pytest.raises(WeightsError, match=f"{damaged} is no JSON: replace it"):
            sources.locate(str(tmp_path), SET, storage(caches))

    @pytest.mark.parametrize("damaged", ["config.json", "model.safetensors.index.json"])
    def test_json_that_is_no_object_is_named(self, caches, tmp_path, damaged):
        for name, content in MODEL.items():
            (tmp_path / name).write_bytes(b"[]" if name == damaged else content)
        with pytest.raises(WeightsError, match=f"{damaged} is no JSON object: replace it"):
            sources.locate(str(tmp_path), SET, storage(caches))

    def test_a_file_that_can_not_be_read_is_named(self, caches, tmp_path):
        for name, content in MODEL.items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").mkdir()
        (tmp_path / "config.yaml").mkdir()
        with pytest.raises(WeightsError, match=r"config\.json can't be read: Is a directory"):
            sources.locate(str(tmp_path), SET, storage(caches))
        with pytest.raises(WeightsError, match=r"config\.yaml can't be read: Is a directory"):
            sources.transcoder_files(str(tmp_path), storage(caches))

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "has no 'model_kind'"),
            ("model_kind: [", "is no YAML"),
            (CONFIG.format("crosscoder"), "'crosscoder' is not served"),
            ("model_kind: transcoder_set", "has no 'feature_input_hook'"),
            (CONFIG.format("transcoder_set") + "transcoders: [a.safetensors]", "lists .*a.safe"),
        ],
    )
    def test_a_configuration_that_says_too_little(self, caches, tmp_path, text, complaint):
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "layer_0.safetensors").write_bytes(b"")
        with pytest.raises(WeightsError, match=complaint):
            sources.transcoder_files(str(tmp_path), storage(caches))

    @pytest.mark.parametrize("name", ["/no/such/place", "", "a b/c", "../etc/passwd", "x/y@../z"])
    def test_a_name_that_is_neither_directory_nor_id(self, caches, name):
        with pytest.raises(WeightsError, match="no directory here and no Hugging Face id"):
            sources.model_files(name or "@", storage(caches))


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_any_name_is_a_reference_within_the_cache_or_refused(name):
    try:
        reference = Reference.parse(name)
    except WeightsError:
        return
    parts = [*reference.repository.split("/"), *reference.path.split("/"), reference.revision]
    assert ".." not in parts
    assert reference.repository.count("/") <= 1


class TestHomeDirectory:
    """`~` is the home of whoever runs the worker, wherever a path may stand."""

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        for name, files in (("model", MODEL), ("set", PER_LAYER)):
            (tmp_path / name).mkdir()
            for file, content in files.items():
                (tmp_path / name / file).write_bytes(content)

    def test_in_the_names_of_model_and_transcoders(self, caches, tmp_path):
        settings = read_settings(model_id="~/model", transcoder_set="~/set")
        entry = select(settings).entry
        assert entry.neuronpedia_id == "model"
        assert entry.transcoder_label == f"{tmp_path.name}/set"
        weights = sources.locate(entry.model, entry.transcoder_set, storage(caches))
        assert (weights.model, weights.transcoders.folder) == (tmp_path / "model", tmp_path / "set")

    def test_in_the_caches_where_weights_are_looked_for(self, tmp_path):
        named = dict.fromkeys(("image_weights", "runpod_model_cache", "hf_hub_cache"), "~/set")
        assert cache_paths(named) == [tmp_path / "set"]

    def test_in_the_paths_that_a_configuration_lists(self, caches, tmp_path):
        (tmp_path / "config.yaml").write_bytes(
            listing("~/set/layer_0.safetensors", str(tmp_path / "set/layer_1.safetensors"))
        )
        files = sources.transcoder_files(str(tmp_path), storage(caches))
        assert files.paths == [tmp_path / f"set/layer_{i}.safetensors" for i in (0, 1)]


@pytest.mark.parametrize(
    ("address", "path", "revision"),
    [
        ("hf://google/scope/layer_0/params.npz", "layer_0/params.npz", "main"),
        ("hf://google/scope/layer_0/params.npz?revision=v2", "layer_0/params.npz", "v2"),
        ("hf://google/scope@v2/layer_0/params.npz", "layer_0/params.npz", "v2"),
        ("hf://google/scope@v2/a.npz?revision=v2", "a.npz", "v2"),
        ("hf://google/scope/folder%20two/a.npz", "folder two/a.npz", "main"),
        ("hf://google/scope", "", "main"),
    ],
)
def test_an_address_names_a_repository_a_path_and_a_revision(address, path, revision):
    assert Reference.parse(address) == Reference("google/scope", path, revision)


@pytest.mark.parametrize(
    "address",
    ["hf://google/scope@v1/a.npz?revision=v2", "hf://google/scope/%2E%2E/a", "hf://google/x@../a"],
)
def test_an_address_that_contradicts_itself_or_leads_out_is_refused(address):
    with pytest.raises(WeightsError, match="no Hugging Face id"):
        Reference.parse(address)
