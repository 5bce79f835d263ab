"""Converting transcoders into circuit-tracer's own layout, so that they can stay on the disk.

That layout is the only one that circuit-tracer can leave there. Nothing is computed: the numbers
stay what they are, in the dtype they are in. A copy is made once, file by file. Each file has a
temporary name until it is complete and on the disk, and an interrupted conversion goes on with the
files that are missing. Importing this module imports no torch.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from loading import WeightsError, converted, room, safetensors_writer
from loading.inspection import can_be_lazy, inspect
from loading.layer import Layer
from loading.read_ahead import read_ahead
from loading.room import gigabytes
from loading.sources import Storage, TranscoderFiles
from loading.tensor_files import ITEM_BYTES, Spec, tensors_in
from loading.tensor_layouts import CIRCUIT_TRACERS_OWN, file_of
from loading.transcoder_config import CONFIG

logger = logging.getLogger(__name__)

# What a start leaves free on the volume that it converts on.
MARGIN = 2_000_000_000


class VolumeError(WeightsError):
    """A copy can't be kept: its volume is full, or can't be written."""


def prepared(files: TranscoderFiles, storage: Storage, *, lazy: bool) -> TranscoderFiles:
    """The files that a start reads: a set's copy where there is one, which is read faster too.

    Args:
        lazy: whether encoders or decoders are to stay on the disk. A set that can't is converted
            then, where the volume has room; else it is read whole, and a warning says why.

    Raises:
        WeightsError: a file is damaged.
    """
    copy = converted.find(files, storage)
    if copy is None and lazy:
        try:
            copy = convert(files, storage, margin=MARGIN)
        except VolumeError as error:
            logger.warning("%s; the transcoders are read whole instead", error)
    if copy is None or copy is files:
        return files
    logger.info("transcoders are read from the converted copy in %s", copy.folder)
    return copy


def convert(files: TranscoderFiles, storage: Storage, *, margin: int = 0) -> TranscoderFiles:
    """A set in circuit-tracer's own layout: itself, a copy that exists, or a new one.

    Args:
        margin: bytes that have to stay free on the volume.

    Raises:
        VolumeError: the volume has too little room, or can't be written.
        WeightsError: a file of the set is damaged, or isn't in its layout.
    """
    if can_be_lazy(files):
        return files
    copy = converted.find(files, storage)
    if copy is not None:
        return copy
    directory = converted.home(files, storage)
    with _volume_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _one_worker_at_a_time(directory):
            if converted.find(files, storage) is None:
                _write_all(files, directory, margin)
    return converted.copy_in(files, storage.caches[-1])


def _write_all(files: TranscoderFiles, directory: Path, margin: int) -> None:
    """Write the files that a copy lacks, and last its configuration, which says that all exist."""
    started = time.perf_counter()
    planned = _plan(files, directory)
    missing = [file for file in planned if not file.is_complete()]
    needed = sum(file.n_bytes for file in missing)
    if said := room.shortage(f"converting {directory.name}", needed + margin, directory.parent):
        raise VolumeError(said)
    logger.info("converting %s: %s to write", directory.name, gigabytes(needed))
    done = 0
    for number, file in enumerate(missing, 1 + len(planned) - len(missing)):
        file.write()
        done += file.n_bytes
        logger.info(
            "converted %d of %d files of %s: %s of %s in %.1f s",
            number,
            len(planned),
            directory.name,
            gigabytes(done),
            gigabytes(needed),
            time.perf_counter() - started,
        )
    with _whole_file(directory / CONFIG) as opened:
        opened.write(converted.configuration(files).encode())


@dataclass(frozen=True)
class _ConvertedFile:
    """A file of the copy, and the layer that it is made from."""

    path: Path
    layer: Layer
    names: Mapping[str, str]  # circuit-tracer's names of its tensors, by those in the file

    @property
    def specs(self) -> dict[str, Spec]:
        return {stored: self.layer.spec(name) for stored, name in self.names.items()}

    @property
    def n_bytes(self) -> int:
        """Of its tensors; the header is a kilobyte."""
        return sum(spec.n_bytes for spec in self.specs.values())

    def is_complete(self) -> bool:
        try:
            return tensors_in(self.path) == self.specs
        except WeightsError:
            return False

    def write(self) -> None:
        # In order: a transposed tensor would be read in strides.
        originals = {self.layer.stored[name].path for name in self.names.values()}
        read_ahead(sorted(originals))
        with _whole_file(self.path) as opened:
            safetensors_writer.write(
                opened, self.specs, lambda stored: self.layer.read(self.names[stored])
            )


def _plan(files: TranscoderFiles, directory: Path) -> list[_ConvertedFile]:
    """The files that a set becomes.

    Raises:
        WeightsError: an original is damaged, or isn't in its layout.
    """
    own = CIRCUIT_TRACERS_OWN[files.kind]
    planned = []
    for layer in inspect(files).layers:
        for tensor in layer.stored.values():
            if tensor.spec.dtype not in ITEM_BYTES:
                raise WeightsError(
                    f"{tensor.path} has {tensor.name} in {tensor.spec.dtype}; one of "
                    f"{', '.join(ITEM_BYTES)} is converted"
                )
        stored, file_names = own.names(layer.number), own.file_names(layer.number)
        for file_name in file_names:
            inside = [name for name in layer.stored if file_of(name, file_names) == file_name]
            names = {stored[name]: name for name in inside}
            planned.append(_ConvertedFile(directory / file_name, layer, names))
    return planned


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write that exists complete or not at all, whatever happens."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some volumes can't sync a directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def _one_worker_at_a_time(directory: Path) -> Iterator[None]:
    """Wait for other workers that write a directory, where the volume has locks.

    Where it has none, two may write the same files. Each uses temporary names and renames complete
    files, so the copy is right whichever comes last.
    """
    with directory.with_name(f"{directory.name}.lock").open("ab") as lock:
        if _lock(lock, directory.name):
            for part in directory.glob(".*.part"):  # of a worker that was ended
                part.unlink(missing_ok=True)
        yield


def _lock(file: IO[bytes], name: str) -> bool:
    """Lock a file, once no other worker has it locked; False where the volume has no locks."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another worker that converts %s", name)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        logger.debug("%s can't be locked: %s", name, error)
        return False
    return True


@contextmanager
def _volume_errors(directory: Path) -> Iterator[None]:
    """Turn what the system says of the volume into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in room.FULL:
            raise VolumeError(room.full(directory)) from error
        raise VolumeError(room.not_writable(directory, error.strerror)) from error
