"""A conversion that is broken off, done by two at once, or without room: never half there."""

import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from loading import conversion, converted
from loading.inspection import inspect
from tests.support.conversions import LAYOUTS, LAZY, contents, convert, located, read
from tests.support.polling import until
from tests.support.tiny_sets import N_LAYERS
from tests.support.weight_files import empty_caches, storage


def in_a_process(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(300)  # so that a test that waits for it in vain ends
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
        assert converted.find(files, storage(caches)) is None
        folder = converted.home(files, storage(caches).caches[-1])
        done = {p.name: p.stat().st_ino for p in folder.glob("layer_*.safetensors")}
        assert len(done) == call // 2
        for name in done:
            assert (folder / name).read_bytes() == expected[name]
        copy = convert(one_set, caches)
        assert contents(copy.folder) == expected
        assert done.items() <= {p.name: p.stat().st_ino for p in folder.iterdir()}.items()

    def test_a_cross_layer_copy_resumes_too(self, tmp_path, caches):
        directory = LAYOUTS["Scope 2 cross-layer"](tmp_path / "set")
        killed_at(5, directory, caches)
        assert read(convert(directory, caches), **LAZY).n_layers == N_LAYERS

    def test_a_finished_file_that_is_not_whole_is_written_again(self, one_set, caches):
        killed_at(5, one_set, caches)
        files = located(one_set, caches)
        layer = converted.home(files, storage(caches).caches[-1]) / "layer_0.safetensors"
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
        found = converted.find(located(one_set, caches), storage(caches))
        assert found is not None
        assert contents(found.folder) == expected

    def test_the_second_waits_says_so_and_uses_what_the_first_made(
        self, one_set, caches, caplog, tmp_path
    ):
        caplog.set_level(logging.INFO)
        waits = tmp_path / "waits"
        files = located(one_set, caches)
        folder = converted.home(files, storage(caches).caches[-1])
        folder.mkdir(parents=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def second():
                held.close()
                conversion.logger.addFilter(
                    lambda record: "waiting" not in record.msg or waits.touch() is None
                )
                converted.convert(inspect(files), storage(caches))
                made = converted.find(files, storage(caches))
                assert made is not None
                assert "waiting for another worker" in caplog.text
                assert "converted 1 of 3" not in caplog.text

            pid = in_a_process(second)
            until(waits.exists)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            conversion.write(inspect(files), folder, converted._configuration(files))
        assert ended(pid) == 0


class TestRoom:
    def test_a_volume_without_room_is_named_before_anything_is_written(self, one_set, caches):
        files = located(one_set, caches)
        with pytest.raises(conversion.VolumeError, match=r"needs [\d,.]+ GB .* free: free"):
            converted.convert(inspect(files), storage(caches), margin=10**15)
        assert list(converted.home(files, storage(caches).caches[-1]).iterdir()) == []

    def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(self, one_set, caches):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
            with pytest.raises(conversion.VolumeError, match="full"):
                convert(one_set, caches)

        assert ended(in_a_process(limited)) == 0
        assert (
            list(converted.home(located(one_set, caches), storage(caches).caches[-1]).iterdir())
            == []
        )
        assert read(convert(one_set, caches)).n_layers == N_LAYERS

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
    def test_a_small_volume_says_what_is_needed(self, one_set, caches, tmp_path):
        volume = tmp_path / "volume"
        volume.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(volume)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("file systems can't be mounted here")
        try:
            with pytest.raises(conversion.VolumeError, match=r"needs 0\.1 MB more"):
                convert(one_set, {**caches, "hf_home": str(volume)})
        finally:
            subprocess.run(["umount", str(volume)], check=True)

    def test_a_directory_that_can_not_be_written_is_named(self, one_set, caches, tmp_path):
        (tmp_path / "home").write_text("a file")
        with pytest.raises(conversion.VolumeError, match=r"home.*can't be written"):
            convert(one_set, caches)
