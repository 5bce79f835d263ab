"""Transcoders in layouts that can't be left on the disk, converted once into one that can."""

import errno
import fcntl
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import model_loader
from loading import conversion, converted, published, sources
from loading.references import WeightsError
from loading.transcoders import transcoders
from tests.chat_messages import user
from tests.demo_worker import ask, demo_settings, without_times
from tests.model_cache import commit_of
from tests.model_hub import Repository, running_hub
from tests.published_layouts import (
    FILES,
    LAYOUTS,
    npz_set,
    scope_2,
    scope_2_set,
    write_repositories,
)
from tests.test_hub import TestCommands as HubCommands
from tests.tiny_families import FAMILIES, N_FEATURES, N_LAYERS, random_transcoder, write_family
from tests.weight_files import MODEL, NAME, empty_caches, places

CPU = torch.device("cpu")
TRANSCODER = "cross layer transcoder"  # what features' nodes are called
EAGER = {"lazy_encoder": False, "lazy_decoder": False}
LAZY = {"lazy_encoder": True, "lazy_decoder": True}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Tensors are copied in pieces of a few rows, as large ones are."""
    monkeypatch.setattr(published, "PIECE_BYTES", 3000)


@pytest.fixture
def caches(tmp_path):
    return empty_caches(tmp_path)


@pytest.fixture(params=LAYOUTS)
def original(request, tmp_path):
    """A set in each of the layouts."""
    torch.manual_seed(0)
    (tmp_path / "My-set").mkdir()
    return LAYOUTS[request.param](tmp_path / "My-set")


@pytest.fixture
def one_set(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "set").mkdir()
    return scope_2_set(tmp_path / "set")


def located(directory, caches) -> sources.TranscoderFiles:
    return sources.transcoder_files(str(directory), places(caches), N_LAYERS)


def convert(directory, caches) -> sources.TranscoderFiles:
    return conversion.convert(located(directory, caches), places(caches))


def read(files, dtype=torch.float32, **lazy):
    return transcoders(files, device=CPU, dtype=dtype, **{**EAGER, **lazy})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
        for path in files.layers:
            assert {t.dtype for t in load_file(path).values()} == {torch.bfloat16}

    def test_sets_in_circuit_tracer_s_own_layout_are_left_alone(self, caches):
        family = FAMILIES["Llama 3, skip"]
        write_family(places(caches).caches[-1].path, family)
        files = located(family.transcoder_set, caches)
        assert not published.needs_conversion(files)
        assert conversion.convert(files, places(caches)) is files
        assert conversion.prepared(files, places(caches), lazy=True) is files

    def test_a_layer_that_is_in_circuit_tracer_s_own_layout_is_copied(self, one_set, caches):
        random_transcoder(1, skip=True, jump=True).to_safetensors(str(one_set / FILES[1]))
        file = convert(one_set, caches).layers[1]
        expected, found = load_file(one_set / FILES[1]), load_file(file)
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
        again = sources.transcoder_files(str(found.folder), places(caches), N_LAYERS)
        assert (again.config.kind, again.config.listed) == (found.config.kind, None)
        expected, state = read(found).state_dict(), read(again).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    def test_keeps_the_configuration_and_says_where_it_came_from(self, caches):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k"
        home = places(caches).caches[-1].path
        write_repositories(home, scope_2(name))
        originals = located(name, caches)
        files = conversion.convert(originals, places(caches))
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
                f"transcoder_all/layer_{layer}_width_262k_l0_small_affine/params.safetensors"
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
        assert converted.find(located(one_set, caches), places(caches)) is None
        assert convert(one_set, caches).folder != first.folder

    def test_beside_weights_in_the_image_is_found(self, one_set, caches):
        built = {**caches, "hf_hub_cache": caches["image_weights"]}
        copy = convert(one_set, built)
        assert copy.folder.parent == Path(caches["image_weights"]).parent / "converted"
        found = converted.find(located(one_set, caches), places(caches))
        assert found is not None
        assert found.folder == copy.folder

    def test_without_one_of_its_files_is_none(self, one_set, caches):
        copy = convert(one_set, caches)
        (copy.folder / "layer_1.safetensors").unlink()
        assert converted.find(located(one_set, caches), places(caches)) is None
        assert convert(one_set, caches) == copy
        assert converted.find(located(one_set, caches), places(caches)) == copy


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


# Interruptions


def in_a_process(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """The process's exit code; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(call: int, directory, caches) -> None:
    """Convert until the file system is asked for the `call`th time to keep what was written."""

    def work():
        fsync, calls = os.fsync, iter(range(1, 1000))

        def counted(descriptor):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = counted
        convert(directory, caches)

    assert ended(in_a_process(work)) == -signal.SIGKILL


class TestInterrupted:
    @pytest.mark.parametrize("call", [1, 2, 3, 4, 7])
    def test_wherever_it_is_killed_no_half_copy_is_used_and_the_next_goes_on(
        self, one_set, caches, tmp_path, call
    ):
        expected = contents(convert(one_set, empty_caches(tmp_path / "elsewhere")).folder)
        killed_at(call, one_set, caches)
        files = located(one_set, caches)
        assert converted.find(files, places(caches)) is None
        folder = converted.home(files, places(caches))
        done = {p.name: p.stat().st_ino for p in folder.glob("layer_*.safetensors")}
        assert len(done) == call // 2
        for name in done:
            assert (folder / name).read_bytes() == expected[name]
        copy = convert(one_set, caches)
        assert contents(copy.folder) == expected
        assert done.items() <= {p.name: p.stat().st_ino for p in folder.iterdir()}.items()

    def test_a_cross_layer_copy_resumes_too(self, tmp_path, caches):
        (tmp_path / "set").mkdir()
        directory = LAYOUTS["Scope 2 cross-layer"](tmp_path / "set")
        killed_at(5, directory, caches)
        assert read(convert(directory, caches), **LAZY).n_layers == N_LAYERS

    def test_a_finished_file_that_is_not_whole_is_written_again(self, one_set, caches):
        killed_at(5, one_set, caches)
        files = located(one_set, caches)
        layer = converted.home(files, places(caches)) / "layer_0.safetensors"
        whole = layer.read_bytes()
        layer.write_bytes(whole[:-1])
        convert(one_set, caches)
        assert layer.read_bytes() == whole


class TestTwoAtOnce:
    @pytest.mark.parametrize("locks", [True, False])
    def test_both_end_with_the_one_copy(self, one_set, caches, tmp_path, monkeypatch, locks):
        expected = contents(convert(one_set, empty_caches(tmp_path / "elsewhere")).folder)
        if not locks:

            def refuse(*_):
                raise OSError(errno.ENOLCK, "No locks available")

            monkeypatch.setattr(fcntl, "flock", refuse)
        processes = [in_a_process(lambda: convert(one_set, caches)) for _ in range(2)]
        assert [ended(pid) for pid in processes] == [0, 0]
        found = converted.find(located(one_set, caches), places(caches))
        assert found is not None
        assert contents(found.folder) == expected

    def test_the_second_waits_says_so_and_uses_what_the_first_made(self, one_set, caches, caplog):
        caplog.set_level(logging.INFO)
        files = located(one_set, caches)
        folder = converted.home(files, places(caches))
        folder.mkdir(parents=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def second():
                held.close()
                conversion.convert(files, places(caches))
                made = converted.find(files, places(caches))
                assert made is not None
                assert "waiting for another worker" in caplog.text
                assert "converted 1 of 3" not in caplog.text

            pid = in_a_process(second)
            time.sleep(1)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            conversion._write_all(files, folder, margin=0)
        assert ended(pid) == 0


class TestRoom:
    def test_a_volume_without_room_is_told_before_anything_is_written(self, one_set, caches):
        files = located(one_set, caches)
        with pytest.raises(conversion.NoPlaceError, match=r"needs [\d,.]+ GB .* free: free"):
            conversion.convert(files, places(caches), margin=10**15)
        assert list(converted.home(files, places(caches)).iterdir()) == []

    def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(self, one_set, caches):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
            with pytest.raises(conversion.NoPlaceError, match="full"):
                convert(one_set, caches)

        assert ended(in_a_process(limited)) == 0
        assert list(converted.home(located(one_set, caches), places(caches)).iterdir()) == []
        assert read(convert(one_set, caches)).n_layers == N_LAYERS

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
    def test_a_small_volume_says_what_is_needed(self, one_set, caches, tmp_path):
        volume = tmp_path / "volume"
        volume.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(volume)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("file systems can't be mounted here")
        try:
            with pytest.raises(conversion.NoPlaceError, match=r"needs 0\.1 MB more"):
                convert(one_set, {**caches, "hf_home": str(volume)})
        finally:
            subprocess.run(["umount", str(volume)], check=True)

    def test_a_place_that_can_not_be_written_is_named(self, one_set, caches, tmp_path):
        (tmp_path / "home").write_text("a file")
        with pytest.raises(conversion.NoPlaceError, match=r"home.*can't be written"):
            convert(one_set, caches)


class TestDamagedOriginals:
    def change(self, one_set, **changed):
        path = one_set / FILES[1]
        tensors = {**load_file(path), **changed}
        save_file({name: t for name, t in tensors.items() if t is not None}, path)

    def test_a_file_cut_short_is_named(self, original, caches):
        path = located(original, caches).layers[1]
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
        assert converted.find(located(tmp_path, caches), places(caches)) is None

    def test_a_tensor_that_is_not_there_is_named(self, one_set, caches):
        self.change(one_set, threshold=None)
        with pytest.raises(WeightsError, match=f"{FILES[1]} has no 'threshold'"):
            convert(one_set, caches)

    def test_a_tensor_of_another_shape_is_named_with_both(self, one_set, caches):
        self.change(one_set, w_dec=torch.zeros(N_FEATURES, 8))
        with pytest.raises(WeightsError, match=rf"{FILES[1]}: 'w_dec' is \(64, 8\).*\(64, 32\)"):
            convert(one_set, caches)

    def test_a_layer_of_another_width_is_named(self, one_set, caches):
        torch.manual_seed(0)
        tensors = load_file(one_set / FILES[1])
        half = N_FEATURES // 2
        narrow = {"w_enc": tensors["w_enc"][:, :half], "w_dec": tensors["w_dec"][:half]}
        narrow |= {name: tensors[name][:half] for name in ("b_enc", "threshold")}
        self.change(one_set, **{name: t.contiguous() for name, t in narrow.items()})
        with pytest.raises(WeightsError, match=f"{FILES[1]} has 32 features .* has 64"):
            convert(one_set, caches)

    def test_an_npz_with_more_than_is_understood_is_refused(self, tmp_path, caches):
        path = npz_set(tmp_path) / "layer_0.npz"
        np.savez(path, **dict(np.load(path)), W_skip=np.zeros((32, 32), np.float32))
        with pytest.raises(WeightsError, match=r"layer_0\.npz has 'W_skip'"):
            convert(tmp_path, caches)


# At the start, and the commands


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
        monkeypatch.setattr(conversion, "MARGIN", 10**15)
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

    def test_damaged_originals_stop_the_start(self, one_set, caches, model):
        (one_set / FILES[1]).write_bytes(b"nothing")
        with pytest.raises(
            model_loader.ModelLoadError, match=f"{FILES[1]} (is damaged|can't be read)"
        ):
            start(one_set, caches, model, lazy_encoder=True)

    def test_the_copy_is_read_ahead_without_what_stays_on_the_disk(
        self, one_set, caches, model, monkeypatch
    ):
        copy = convert(one_set, caches)
        asked = []
        monkeypatch.setattr("model_loader.read_ahead", lambda files, skip: asked.append(files))
        model_loader.read_weights_ahead(
            demo_settings(model_id=str(model), transcoder_set=str(one_set), **caches)
        )
        assert asked[0][:N_LAYERS] == list(copy.layers)


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
        copy = converted.find(located(one_set, caches), places(caches))
        assert copy is not None
        *_, line = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{one_set}: 0.00 GB in {copy.folder} (")

    def test_convert_downloads_what_is_not_here_and_imports_no_torch(self, caches):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_16k"
        environment = {key.upper(): value for key, value in caches.items()}
        environment |= {"MODEL_ID": NAME, "TRANSCODER_SET": name, "LOG_LEVEL": "DEBUG"}
        with running_hub() as hub:
            hub.repositories = {NAME: Repository(dict(MODEL))}
            hub.repositories |= {key: Repository(files) for key, files in scope_2(name).items()}
            done = HubCommands.run("convert", url=hub.url, **environment)
        assert done.returncode == 0, done.stderr
        *_, last = done.stdout.splitlines()
        assert last.startswith(f"{name}: 0.00 GB in {caches['hf_home']}/converted/mwhanna--")
        for line in ("downloading", "converting mwhanna--", "converted 3 of 3 files"):
            assert line in done.stderr
        program = "import sys; import loading.conversion; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

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
        write_family(places(caches).caches[-1].path, family)
        for ending in ("  HF_HOME", "  HF_HOME, converted"):
            assert self.run(monkeypatch, caches, "list") == 0
            lines = capsys.readouterr().out.splitlines()
            (line,) = [line for line in lines if family.transcoder_set in line]
            assert line.endswith(ending)
            convert(family.transcoder_set, caches)

    def test_list_tells_what_a_start_will_convert(self, caches, monkeypatch, capsys):
        name = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k_l0_small_affine"
        write_repositories(places(caches).caches[-1].path, scope_2(name))
        assert self.run(monkeypatch, caches, "list") == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
        assert line.endswith("transcoders: HF_HOME, not yet converted")
