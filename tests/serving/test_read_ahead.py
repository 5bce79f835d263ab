"""Weights are read ahead once and whole, up to half of the memory."""

import errno
import logging
import os
import sys

import pytest

from loading.read_ahead import memory_bytes, read_ahead
from model_loader import read_weights_ahead
from tests.support.demo_worker import demo_settings
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    path.write_bytes(bytes(1000))
    return path


def bytes_read(caplog, files):
    """What the log says was read, in bytes."""
    caplog.set_level(logging.DEBUG, logger="loading.read_ahead")
    caplog.clear()
    thread = read_ahead(files)
    thread.join(timeout=LONGEST_S)
    assert not thread.is_alive()
    return round(caplog.records[-1].args[0] * 1e6)


def test_files_are_read_whole(caplog, weights):
    assert bytes_read(caplog, [weights, weights]) == 2000


@pytest.mark.parametrize(("memory", "expected"), [(4000, 2000), (3000, 1500), (1998, 999), (0, 0)])
def test_no_more_than_half_of_the_memory_is_read(caplog, weights, monkeypatch, memory, expected):
    monkeypatch.setattr("loading.read_ahead.memory_bytes", lambda: memory)
    assert bytes_read(caplog, [weights, weights]) == expected


def test_a_container_s_limit_counts_where_it_is_below_the_machine_s_memory(tmp_path):
    machine = memory_bytes([])
    limit = tmp_path / "memory.max"
    assert memory_bytes([limit]) == machine
    for text, expected in (("1000000\n", 10**6), ("max\n", machine), (str(2**63 - 4096), machine)):
        limit.write_text(text)
        assert memory_bytes([tmp_path / "none", limit]) == expected


def test_a_file_that_cannot_be_read_is_passed_over(caplog, weights, tmp_path):
    files = [tmp_path / "missing.safetensors", tmp_path, weights]
    assert bytes_read(caplog, files) == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to read ahead")
def test_what_is_read_ahead_is_in_the_page_cache_on_any_disk(caplog, tmp_path):
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.write(os.urandom(24 << 20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert bytes_read(caplog, [path]) == 24 << 20
    content = bytearray(24 << 20)
    with path.open("rb", buffering=0) as file:
        try:
            there = os.preadv(file.fileno(), [content], 0, os.RWF_NOWAIT)
        except OSError as error:  # BlockingIOError is one: it would have to wait for the disk
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("the file system doesn't say what is in the page cache")
            raise
    assert there == len(content)


@pytest.fixture
def asked(monkeypatch):
    """The lists of files that are read ahead."""
    lists = []
    monkeypatch.setattr("model_loader.read_ahead", lists.append)
    return lists


TRANSCODERS = [f"demo/transcoders/layer_{layer}.safetensors" for layer in range(4)]
MODEL = "demo/model/model.safetensors"


@pytest.mark.parametrize(
    ("lazy", "expected"),
    [
        ({"lazy_encoder": False, "lazy_decoder": False}, [*TRANSCODERS, MODEL]),
        ({"lazy_encoder": False, "lazy_decoder": True}, [MODEL, *TRANSCODERS]),
        ({"lazy_encoder": True, "lazy_decoder": False}, [MODEL, *TRANSCODERS]),
    ],
)
def test_transcoders_that_loading_leaves_on_the_disk_are_read_after_the_model(
    asked, lazy, expected
):
    read_weights_ahead(demo_settings(**lazy))
    read_weights_ahead(demo_settings(transcoder_set="some/thing"))  # refused later, by `load`
    [files] = asked
    assert [str(file.relative_to(ROOT)) for file in files] == expected


def test_weights_that_can_not_be_looked_for_are_left_to_load(asked, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    read_weights_ahead(demo_settings(model_id=str(tmp_path), transcoder_set="some/thing"))
    assert asked == []
