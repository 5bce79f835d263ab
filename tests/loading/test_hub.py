"""Downloads from a hub on this machine, and the commands that fill and show the caches."""

import os
import signal
from pathlib import Path

import pytest
import requests

from loading import sources
from tests.support.hub_client import hub_client, run_command, start_command
from tests.support.model_cache import commit_of, files_of, write_repository
from tests.support.model_hub import MEMBER, Repository, etag, running_hub
from tests.support.polling import until
from tests.support.programs import imported_by
from tests.support.weight_files import (
    CROSS_LAYER,
    FEATURE_PAGES,
    MODEL,
    NAME,
    OTHER_FORMATS,
    PER_LAYER,
    SET,
    cache_paths,
    in_folder,
    listing,
    storage,
)


@pytest.fixture(scope="module")
def _running():
    with running_hub() as hub, hub_client(hub.url) as client:
        yield hub, client


@pytest.fixture
def hub(_running):
    hub, _ = _running
    hub.repositories = {NAME: Repository({**MODEL, **OTHER_FORMATS})}
    hub.requests.clear()
    hub.ranges.clear()
    hub.break_after.clear()
    hub.failures = 0
    hub.listings_left = 10**6
    return hub


@pytest.fixture
def client(_running):
    return _running[1]


class TestHub:
    def test_only_what_is_needed_is_downloaded_and_kept_in_hf_home(self, hub, client, caches):
        answer = client.ask("model", NAME, **caches)
        assert answer["source"] == "hub"
        assert not answer["torch"]
        home = cache_paths(caches)[-1]
        snapshot = home / "models--google--gemma-2-2b/snapshots" / commit_of(NAME)
        assert files_of(snapshot) == MODEL
        assert sources.model_files(NAME, storage(caches)) == (
            snapshot,
            "HF_HOME",
            f"{NAME}@{commit_of(NAME)}",
        )

    def test_every_file_is_of_the_commit_that_the_revision_was_at_the_start(
        self, hub, client, caches
    ):
        hub.repositories[SET] = Repository({**in_folder(PER_LAYER, "a"), **FEATURE_PAGES})
        answer = client.ask("transcoders", f"{SET}/a", n_layers=2, **caches)
        assert answer["revisions"] == [f"{SET}/a@{commit_of(SET)}"]
        files = [request for request in hub.requests if "/resolve/" in request]
        assert len(files) >= len(PER_LAYER)
        assert all(f"/resolve/{commit_of(SET)}/" in request for request in files)
        listed = [request for request in hub.requests if "/api/models/" in request]
        assert [request for request in listed if commit_of(SET) not in request] == listed[:1]

    @pytest.mark.parametrize("is_begun", [False, True])
    def test_a_hub_that_is_gone_in_the_middle_is_told_and_the_rest_comes_later(
        self, hub, client, caches, is_begun
    ):
        if is_begun:  # then the client returns the folder as it is, without an error
            config = {"config.json": MODEL["config.json"]}
            write_repository(cache_paths(caches)[-1], NAME, config, refs=False)
        hub.listings_left = 1
        answer = client.ask("model", NAME, **caches)
        assert answer["kind"] == "UnreachableError"
        assert f"and {hub.url} " in answer["error"]
        hub.listings_left = 10
        assert files_of(Path(client.ask("model", NAME, **caches)["folder"])) == MODEL

    def test_with_everything_present_nothing_is_asked(self, hub, client, caches):
        home = cache_paths(caches)[-1]
        write_repository(home, NAME, MODEL)
        addresses = ("hf://google/scope/0.npz", "hf://google/scope/1.npz")
        write_repository(home, SET, {"config.yaml": listing(*addresses)})
        write_repository(home, "google/scope", {"0.npz": b"0", "1.npz": b"1"})
        assert client.ask("model", NAME, **caches)["source"] == "HF_HOME"
        assert client.ask("transcoders", SET, n_layers=2, **caches)["source"] == "HF_HOME"
        assert hub.requests == []

    @pytest.mark.parametrize("files", [PER_LAYER, CROSS_LAYER])
    def test_transcoders_come_without_their_features_pages(self, hub, client, caches, files):
        hub.repositories[SET] = Repository({**in_folder(files, "a/b"), **FEATURE_PAGES})
        answer = client.ask("transcoders", f"{SET}/a/b", n_layers=2, **caches)
        snapshot = cache_paths(caches)[-1] / "models--mwhanna--transcoders/snapshots"
        assert files_of(snapshot / commit_of(SET) / "a/b") == files
        assert answer["folder"].endswith("/a/b")
        assert not any("features" in request for request in hub.requests)

    def test_listed_files_come_from_their_own_repository(self, hub, client, caches):
        addresses = [f"hf://google/scope/layer_{i}/params.npz" for i in (0, 1)]
        hub.repositories[SET] = Repository({"config.yaml": listing(*addresses)})
        hub.repositories["google/scope"] = Repository(
            {f"layer_{i}/params.npz": b"%d" % i for i in range(5)}, gated=True
        )
        answer = client.ask("transcoders", SET, n_layers=2, hf_token=MEMBER, **caches)
        assert [Path(path).read_bytes() for path in answer["layers"]] == [b"0", b"1"]
        assert not any("layer_2" in request for request in hub.requests)

    def test_a_broken_download_goes_on_where_it_broke(self, hub, client, caches):
        chunk = 10 * 2**20  # what the client writes at once
        weights = os.urandom(chunk + 2_000_000)
        small = {name: MODEL[name] for name in ("config.json", "tokenizer.json")}
        hub.repositories[NAME] = Repository({**small, "model.safetensors": weights})
        hub.break_after["model.safetensors"] = chunk + 1_000_000
        answer = client.ask("model", NAME, **caches)
        assert hub.ranges == [f"bytes={chunk}-"]
        assert Path(answer["folder"], "model.safetensors").read_bytes() == weights

    def test_a_download_that_an_earlier_process_began_is_gone_on_with(self, hub, client, caches):
        shard = "model-00001-of-00002.safetensors"
        blob = cache_paths(caches)[-1] / "models--google--gemma-2-2b/blobs" / etag(MODEL[shard])
        blob.parent.mkdir(parents=True)
        (blob.parent / f"{blob.name}.incomplete").write_bytes(MODEL[shard][:77])
        assert "error" not in client.ask("model", NAME, **caches)
        assert hub.ranges == ["bytes=77-"]
        assert blob.read_bytes() == MODEL[shard]

    def test_a_hub_that_stumbles_is_asked_again(self, hub, client, caches):
        hub.failures = 2
        assert client.ask("model", NAME, **caches)["source"] == "hub"

    def test_an_interrupted_download_is_never_taken_for_a_whole_set(self, hub, client, caches):
        hub.repositories[SET] = Repository(PER_LAYER)
        snapshot = write_repository(cache_paths(caches)[-1], SET, {}, refs=False)
        for name in ("config.yaml", "layer_0.safetensors"):
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(PER_LAYER[name])
        answer = client.ask("transcoders", SET, n_layers=2, **caches)
        assert answer["source"] == "hub"
        assert len(answer["layers"]) == 2

    def test_half_a_model_in_small_letters_does_not_hide_the_download(self, hub, client, caches):
        hub.repositories["Qwen/Qwen3-4B"] = Repository(MODEL)
        home = cache_paths(caches)[-1]
        config = {"config.json": MODEL["config.json"]}
        write_repository(home, "qwen/qwen3-4b", config, refs=False)
        answer = client.ask("model", "Qwen/Qwen3-4B", **caches)
        assert files_of(Path(answer["folder"])) == MODEL
        assert client.ask("model", "Qwen/Qwen3-4B", **caches)["source"] == "HF_HOME"

    def test_a_ref_is_replaced_whole(self, hub, client, caches, tmp_path):
        config = {"config.json": MODEL["config.json"]}
        snapshot = write_repository(cache_paths(caches)[-1], NAME, config)
        ref = snapshot.parent.parent / "refs/main"
        ref.write_text("0" * 40)
        being_read = tmp_path / "ref"
        being_read.hardlink_to(ref)
        assert client.ask("model", NAME, **caches)["source"] == "hub"
        assert ref.read_text() == commit_of(NAME)
        assert being_read.read_text() == "0" * 40
        assert list(ref.parent.iterdir()) == [ref]

    def test_a_gated_repository_is_told_with_where_to_ask(self, hub, client, caches):
        hub.repositories[NAME].gated = True
        refused = client.ask("model", NAME, **caches)["error"]
        assert refused.startswith(f"{NAME} is gated: accept its terms at {hub.url}/{NAME}")
        assert "HF_TOKEN" in refused
        assert "error" in client.ask("model", NAME, hf_token="hf_stranger", **caches)
        assert client.ask("model", NAME, hf_token=MEMBER, **caches)["source"] == "hub"

    def test_a_token_may_come_from_a_secret_s_file(self, hub, client, caches, tmp_path):
        hub.repositories[NAME].gated = True
        (tmp_path / "hf_token").write_text(f"{MEMBER}\n")
        caches["hf_token_path"] = str(tmp_path / "hf_token")
        assert client.ask("model", NAME, **caches)["source"] == "hub"

    def test_an_unknown_repository_is_named(self, hub, client, caches):
        error = client.ask("model", "someone/else", **caches)["error"]
        assert error == (
            f"someone/else is not on {hub.url}: check its name, and HF_TOKEN if it is private"
        )

    def test_an_unknown_revision_is_named(self, hub, client, caches):
        error = client.ask("model", f"{NAME}@v9", **caches)["error"]
        assert error.startswith(f"{NAME} has no revision 'v9'")

    def test_a_folder_without_transcoders_is_named(self, hub, client, caches):
        error = client.ask("transcoders", f"{NAME}/width_16k", **caches)["error"]
        assert error.startswith(f"{NAME} has no width_16k/config.yaml at main")

    def test_a_set_with_fewer_layers_than_the_model_is_not_downloaded(self, hub, client, caches):
        hub.repositories[SET] = Repository(PER_LAYER)
        error = client.ask("transcoders", SET, n_layers=3, **caches)["error"]
        assert f"{SET} has no layer_2.safetensors" in error
        assert not any("layer_0" in request for request in hub.requests)

    def test_a_model_without_safetensors_is_refused(self, hub, client, caches):
        hub.repositories[NAME] = Repository({"config.json": b"{}", **OTHER_FORMATS})
        error = client.ask("model", NAME, **caches)["error"]
        assert error.startswith(f"{NAME} has no model.safetensors")

    def test_a_disk_that_is_too_small_is_told_before_the_download(self, hub, client, caches):
        shard = "model-00001-of-00002.safetensors"
        hub.repositories[NAME].claimed_sizes[shard] = 10**17
        error = client.ask("model", NAME, **caches)["error"]
        assert f"{NAME} needs 100,000,000.0 GB more in {cache_paths(caches)[-1]}" in error
        assert "HF_HOME" in error
        assert not any("resolve" in request for request in hub.requests)

    def test_a_disk_that_fills_up_meanwhile_is_told(self, hub, client, caches):
        shard = "model-00001-of-00002.safetensors"
        blobs = cache_paths(caches)[-1] / "models--google--gemma-2-2b/blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{etag(MODEL[shard])}.incomplete").symlink_to("/dev/full")
        error = client.ask("model", NAME, **caches)["error"]
        assert error.startswith(f"the disk of {cache_paths(caches)[-1]} is full")

    def test_a_cache_that_cannot_be_written_is_told(self, hub, client, caches, tmp_path):
        (tmp_path / "file").write_text("")
        caches["hf_home"] = str(tmp_path / "file")
        error = client.ask("model", NAME, **caches)["error"]
        cache = tmp_path / "file" / "hub"
        assert error == f"{cache} can't be written: set HF_HOME to a directory that can"


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError])
def test_what_xet_raises_for_a_network_that_fails_is_tried_again(kind):
    from loading import hub  # with the client, which not every test needs

    failures = [kind("reset"), None]

    def fetch():
        if error := failures.pop(0):
            raise error
        return "whole"

    assert hub._retried(fetch) == "whole"


def test_a_hub_that_answers_503_to_a_file_is_asked_again():
    from huggingface_hub.errors import LocalEntryNotFoundError

    from loading import hub

    answer = requests.Response()
    answer.status_code = 503
    error = LocalEntryNotFoundError("no file here, and the hub can't be asked")  # the client's own
    error.__cause__ = requests.HTTPError(response=answer)
    failures = [error, None]

    def fetch():
        if error := failures.pop(0):
            raise error
        return "whole"

    assert hub._retried(fetch) == "whole"


class TestCommands:
    def test_prefetch_fills_a_cache_and_list_shows_it(self, hub, caches, tmp_path):
        hub.repositories[NAME] = Repository(MODEL, gated=True)
        hub.repositories["mntss/clt-gemma-2-2b-2.5M"] = Repository(CROSS_LAYER)
        (tmp_path / "hf_token").write_text(MEMBER)
        environment = {name.upper(): value for name, value in caches.items()}
        environment["HF_TOKEN_PATH"] = str(tmp_path / "hf_token")
        names = {"MODEL_ID": NAME, "TRANSCODER_SET": "mntss/clt-gemma-2-2b-2.5M"}
        # The image is built by filling the directory that its worker looks in first.
        filling = {"HF_HUB_CACHE": caches["image_weights"]}
        done = run_command("prefetch", url=hub.url, **environment, **names, **filling)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.splitlines()
        assert [line.split(": ")[0] for line in shown] == list(names.values())
        assert all(caches["image_weights"] in line and "GB" in line for line in shown)
        assert "downloading" in done.stderr
        done = run_command("list", **environment)
        assert done.returncode == 0, done.stderr
        rows = {tuple(line.split()[:2]): line.split()[-1] for line in done.stdout.splitlines()}
        assert rows["demo", "demo/transcoders"] == "directory"
        assert rows[NAME, "mntss/clt-gemma-2-2b-2.5M"] == "image"
        assert rows["Qwen/Qwen3-4B", "mwhanna/qwen3-4b-transcoders"] == "no"

    def test_a_failed_prefetch_is_one_sentence_and_status_1(self, caches):
        environment = {name.upper(): value for name, value in caches.items()}
        done = run_command("prefetch", "--model-id", "gemma-2-2b", **environment)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("prefetch: google/gemma-2-2b is in none of")
        assert "http://127.0.0.1:9 can't be reached (ConnectionError)" in line

    def test_an_interrupted_prefetch_ends_at_once(self, hub, caches):
        hub.sends.clear()
        environment = {name.upper(): value for name, value in caches.items()}
        process = start_command("prefetch", "--model-id", NAME, url=hub.url, **environment)
        try:
            until(lambda: any("GET" in r and "resolve" in r for r in hub.requests))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=50)  # the hub would wait for longer
        finally:
            process.kill()
            hub.sends.set()
        assert process.returncode == 130
        assert errors.endswith("interrupted; what has arrived is kept\n")

    def test_neither_command_imports_torch(self):
        program = "import model_loader; assert model_loader.main(['list']) == 0"
        assert not imported_by(program, "torch")
