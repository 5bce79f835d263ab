"""Transcoders in layouts that can't be left on the disk, converted into one that can."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from loading import WeightsError, converted, sources, tensor_files
from loading.inspection import inspect
from tests.support.conversions import (
    FILES,
    LAYOUTS,
    LAZY,
    convert,
    located,
    npz_set,
    read,
    scope_2_set,
)
from tests.support.model_cache import commit_of, write_repositories
from tests.support.tiny_families import FAMILIES, write_family
from tests.support.tiny_sets import N_FEATURES, N_LAYERS, gemma_scope_2, random_transcoder
from tests.support.weight_files import storage


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Tensors are copied in pieces of a few rows, as large ones are."""
    monkeypatch.setattr(tensor_files, "WRITTEN_BYTES", 3000)


class TestWhatIsConverted:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_copy_holds_the_same_numbers_read_whole(self, original, caches, dtype):
        expected = read(located(original, caches), dtype).state_dict()
        found = read(convert(original, caches), dtype).state_dict()
        assert set(found) == set(expected)
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected[name].to(dtype)), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_left_on_the_disk_it_computes_the_same(self, original, caches, dtype):
        expected = read(located(original, caches), dtype)
        lazy = read(convert(original, caches), dtype, **LAZY)
        names = {name.split(".")[-1] for name, _ in lazy.named_parameters()}
        assert not {"W_enc", "W_dec"} & names
        x = torch.randn(N_LAYERS, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            parts = expected.compute_attribution_components(x)
            assert parts["activation_matrix"]._nnz() > 20
            for name, found in lazy.compute_attribution_components(x).items():
                if torch.is_tensor(found):
                    assert torch.equal(_dense(found), _dense(parts[name])), name

    def test_files_in_bfloat16_stay_so(self, tmp_path, caches):
        files = convert(scope_2_set(tmp_path, torch.bfloat16), caches)
        for path in files.paths:
            assert {t.dtype for t in load_file(path).values()} == {torch.bfloat16}

    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_a_threshold_for_all_features_stays_one(self, one_set, caches, shape):
        for name in FILES:
            tensors = {**load_file(one_set / name), "threshold": torch.full(shape, 0.2)}
            save_file(tensors, one_set / name)
        expected = read(located(one_set, caches)).state_dict()
        found = read(convert(one_set, caches)).state_dict()
        assert found["transcoders.0.activation_function.threshold"].shape == shape
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_sets_in_circuit_tracer_s_own_layout_are_left_alone(self, caches):
        family = FAMILIES["Llama 3, skip"]
        write_family(storage(caches).caches[-1].path, family)
        files = located(family.transcoder_set, caches)
        contents = inspect(files)
        assert contents.can_be_lazy
        assert converted.convert(contents, storage(caches)) is files

    @pytest.mark.parametrize("layer", [0, 1])
    def test_a_layer_that_is_in_circuit_tracer_s_own_layout_is_copied(self, one_set, caches, layer):
        original = one_set / FILES[layer]
        random_transcoder(layer, skip=True, jump=True).to_safetensors(str(original))
        file = convert(one_set, caches).paths[layer]
        assert file != original
        expected, found = load_file(original), load_file(file)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in found)

    def test_a_list_that_names_the_last_file_twice_gives_each_layer_once(self, tmp_path, caches):
        directory = LAYOUTS["Scope 2 cross-layer"](tmp_path)
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config["transcoders"].append(FILES[-1])
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        files = convert(directory, caches)
        assert len(list(files.folder.glob("W_enc_*"))) == N_LAYERS
        assert read(files).n_layers == N_LAYERS


class TestTheCopy:
    def test_is_a_directory_in_circuit_tracer_s_layout_by_itself(self, original, caches):
        found = convert(original, caches)
        again = sources.transcoder_files(str(found.folder), storage(caches), N_LAYERS)
        assert (again.config.kind, again.config.listed) == (found.config.kind, None)
        expected, state = read(found).state_dict(), read(again).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    def test_keeps_the_configuration_and_says_where_it_came_from(self, caches):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k"
        home = storage(caches).caches[-1].path
        write_repositories(home, gemma_scope_2(skip=True)(name))
        originals = located(name, caches)
        files = converted.convert(inspect(originals), storage(caches))
        commit = commit_of("mwhanna/gemma-scope-2-4b-it")
        assert files.folder.parent == Path(caches["hf_home"]) / "converted"
        label = f"mwhanna--gemma-scope-2-4b-it--transcoder_all--width_262k@{commit[:12]}"
        assert files.folder.name.startswith(label)
        config = yaml.safe_load((files.folder / "config.yaml").read_text())
        assert config.pop("source") == {
            "converted": 1,
            "repository": "mwhanna/gemma-scope-2-4b-it",
            "folder": "transcoder_all/width_262k",
            "revision": commit,
            "files": [
                f"google/gemma-scope-2-4b-it@{commit_of('google/gemma-scope-2-4b-it')}/"
                f"transcoder_all/layer_{layer}_width_262k/params.safetensors"
                for layer in range(N_LAYERS)
            ],
        }
        assert config == {
            "model_kind": "transcoder_set",
            "feature_input_hook": "mlp.hook_in",
            "feature_output_hook": "hook_mlp_out",
        }
        assert (files.scan, files.config.feature_input_hook) == (originals.scan, "mlp.hook_in")

    def test_of_another_commit_or_changed_directory_is_another(self, one_set, caches):
        first = convert(one_set, caches)
        os.utime(one_set / FILES[1], (1, 1))
        assert converted.find(located(one_set, caches), storage(caches)) is None
        assert convert(one_set, caches).folder != first.folder

    def test_beside_weights_in_the_image_is_found(self, one_set, caches):
        built = {**caches, "hf_hub_cache": caches["image_weights"]}
        copy = convert(one_set, built)
        assert copy.folder.parent == Path(caches["image_weights"]).parent / "converted"
        found = converted.find(located(one_set, caches), storage(caches))
        assert found is not None
        assert found.folder == copy.folder

    def test_without_one_of_its_files_is_none(self, one_set, caches):
        copy = convert(one_set, caches)
        (copy.folder / "layer_1.safetensors").unlink()
        assert converted.find(located(one_set, caches), storage(caches)) is None
        assert convert(one_set, caches) == copy
        assert converted.find(located(one_set, caches), storage(caches)) == copy


class TestDamagedOriginals:
    def change(self, one_set, **changed):
        path = one_set / FILES[1]
        tensors = {**load_file(path), **changed}
        save_file({name: t for name, t in tensors.items() if t is not None}, path)

    def test_a_file_cut_short_is_named(self, original, caches):
        path = located(original, caches).paths[1]
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(WeightsError, match=f"{path.name} is damaged"):
            convert(original, caches)

    def test_a_flipped_bit_of_an_npz_is_found(self, tmp_path, caches):
        path = npz_set(tmp_path) / "layer_2.npz"
        content = bytearray(path.read_bytes())
        content[2000] ^= 1
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"layer_2\.npz is damaged"):
            convert(tmp_path, caches)
        assert converted.find(located(tmp_path, caches), storage(caches)) is None

    def test_a_tensor_that_is_not_there_is_named(self, one_set, caches):
        self.change(one_set, threshold=None)
        with pytest.raises(WeightsError, match=f"{FILES[1]} lacks threshold"):
            convert(one_set, caches)

    def test_a_tensor_of_another_kind_of_number_is_named_with_it(self, one_set, caches):
        self.change(one_set, b_enc=torch.zeros(N_FEATURES, dtype=torch.int32))
        with pytest.raises(WeightsError, match=f"{FILES[1]} has b_enc in I32; one of F64, F32"):
            convert(one_set, caches)

    def test_a_tensor_of_another_shape_is_named_with_both(self, one_set, caches):
        self.change(one_set, w_dec=torch.zeros(N_FEATURES, 8))
        with pytest.raises(WeightsError, match=f"{FILES[1]} has w_dec of 64 x 8, .*64 x 32"):
            convert(one_set, caches)

    def test_a_layer_of_another_width_is_named(self, one_set, caches):
        torch.manual_seed(0)
        tensors = load_file(one_set / FILES[1])
        half = N_FEATURES // 2
        narrow = {"w_enc": tensors["w_enc"][:, :half], "w_dec": tensors["w_dec"][:half]}
        narrow |= {name: tensors[name][:half] for name in ("b_enc", "threshold")}
        self.change(one_set, **{name: t.contiguous() for name, t in narrow.items()})
        with pytest.raises(WeightsError, match=f"{FILES[1]} has w_enc of 32 x 32, .*32 x 64"):
            convert(one_set, caches)

    def test_an_npz_with_more_than_is_understood_is_refused(self, tmp_path, caches):
        path = npz_set(tmp_path) / "layer_0.npz"
        np.savez(path, **dict(np.load(path)), W_skip=np.zeros((32, 32), np.float32))
        with pytest.raises(WeightsError, match=r"layer_0\.npz holds 'W_skip'"):
            convert(tmp_path, caches)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor
