"""Writing a set of transcoders anew in circuit-tracer's own layout.

Nothing is computed: the numbers stay what they are, in the dtype they are in. Each file has a
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

from loading import WeightsError, room
from loading.inspection import Contents
from loading.layers import CIRCUIT_TRACERS_OWN, Layer, file_of
from loading.read_ahead import read_ahead
from loading.room import gigabytes
from loading.tensor_files import ITEM_BYTES, Spec, tensors_in, write_safetensors
from loading.transcoder_folder import CONFIG, layer_files

logger = logging.getLogger(__name__)


class VolumeError(WeightsError):
    """A copy can't be kept: its volume is full, or can't be written."""


@contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Make a directory and wait for other workers that write it, where the volume has locks.

    Where it has none, two may write the same files. Each uses temporary names and renames complete
    files, so the copy is right whichever comes last.

    Raises:
        VolumeError: the volume is full or can't be written, also inside of the block.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with directory.with_name(f"{directory.name}.lock").open("ab") as lock:
            if _lock(lock, directory.name):
                for part in directory.glob(".*.part"):  # of a worker that was ended
                    part.unlink(missing_ok=True)
            yield
    except OSError as error:
        if error.errno in room.FULL:
            raise VolumeError(room.full(directory)) from error
        raise VolumeError(room.not_writable(directory, error.strerror)) from error


def write(contents: Contents, directory: Path, configuration: str, margin: int = 0) -> None:
    """Write the files that a copy lacks, and last its configuration, which says that all exist.

    Args:
        configuration: the text of the copy's `config.yaml`.
        margin: bytes that have to stay free on the volume.

    Raises:
        VolumeError: the volume has too little room.
        WeightsError: a file of the set is damaged, or a tensor has a dtype that isn't converted.
    """
    started = time.perf_counter()
    planned = _plan(contents, directory)
    missing = [file for file in planned if not file.is_complete()]
    needed = sum(file.n_bytes for file in missing)
    if shortage := room.shortage(f"converting {directory.name}", needed + margin, directory.parent):
        raise VolumeError(shortage)
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
        opened.write(configuration.encode())


@dataclass(frozen=True)
class _ConvertedFile:
    """A file of the copy, and the layer that it is made from."""

    path: Path
    layer: Layer
    names: Mapping[str, str]  # circuit-tracer's names of its tensors, by those in the file
    specs: Mapping[str, Spec]  # by those in the file too

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
            write_safetensors(opened, self.specs, lambda name: self.layer.read(self.names[name]))


def _plan(contents: Contents, directory: Path) -> list[_ConvertedFile]:
    """The files that a set becomes."""
    kind = contents.files.config.kind
    own, copies = CIRCUIT_TRACERS_OWN[kind], layer_files(directory, kind, len(contents.layers))
    planned = []
    for layer, paths in zip(contents.layers, copies, strict=True):
        for tensor in layer.stored.values():
            if tensor.spec.dtype not in ITEM_BYTES:
                raise WeightsError(
                    f"{tensor.path} has {tensor.name} in {tensor.spec.dtype}; one of "
                    f"{', '.join(ITEM_BYTES)} is converted"
                )
        stored = own.names(layer.number)
        for path in paths:
            names = {stored[name]: name for name in layer.stored if file_of(name, paths) == path}
            specs = {inside: layer.spec(name) for inside, name in names.items()}
            planned.append(_ConvertedFile(path, layer, names, specs))
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
