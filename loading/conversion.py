"""Converting transcoders into circuit-tracer's own layout, so that they can stay on the disk.

A copy is made once, file by file. Each file has a temporary name until it is complete and on the
disk, and an interrupted conversion goes on with the files that are missing. Importing this module
imports no torch.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from loading import WeightsError, converted, room, safetensors_files
from loading.conversion_plan import ConvertedFile, plan
from loading.inspection import can_be_lazy
from loading.read_ahead import read_ahead
from loading.room import gigabytes
from loading.sources import Storage, TranscoderFiles
from loading.transcoder_config import CONFIG

logger = logging.getLogger(__name__)

# What a start leaves free on the volume that it converts on.
MARGIN = 2_000_000_000

_WAIT_S = 0.1


class NoPlaceError(WeightsError):
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
        except NoPlaceError as error:
            logger.warning("%s; the transcoders are read whole instead", error)
    if copy is None or copy is files:
        return files
    logger.info("transcoders are read from the converted copy in %s", copy.folder)
    return copy


def convert(files: TranscoderFiles, storage: Storage, *, margin: int = 0) -> TranscoderFiles:
    """A set in circuit-tracer's own layout: itself, a copy that is there, or a new one.

    Args:
        margin: bytes that have to stay free on the volume.

    Raises:
        NoPlaceError: the volume has too little room, or can't be written.
        WeightsError: a file of the set is damaged, or isn't in its layout.
    """
    if can_be_lazy(files):
        return files
    copy = converted.find(files, storage)
    if copy is not None:
        return copy
    directory = converted.home(files, storage)
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            if converted.find(files, storage) is None:
                _write_all(files, directory, margin)
    return converted.at_home(files, storage)


def _write_all(files: TranscoderFiles, directory: Path, margin: int) -> None:
    name = directory.name
    started = time.perf_counter()
    planned = plan(files)
    left = [file for file in planned if not _is_there(directory, file)]
    needed = sum(file.n_bytes for file in left)
    if said := room.shortage(f"converting {name}", needed + margin, directory.parent):
        raise NoPlaceError(said)
    logger.info("converting %s: %s to write", name, gigabytes(needed))
    done = 0
    for number, file in enumerate(planned, 1):
        if file not in left:
            continue
        read_ahead([file.original])  # in order, where a transposed tensor is read in strides
        _write(directory / file.name, _tensors_of(file))
        done += file.n_bytes
        logger.info(
            "converted %d of %d files of %s: %s of %s in %.1f s",
            number,
            len(planned),
            name,
            gigabytes(done),
            gigabytes(needed),
            time.perf_counter() - started,
        )
    text = converted.configuration(files).encode()
    _write(directory / CONFIG, lambda file: file.write(text))


def _is_there(directory: Path, file: ConvertedFile) -> bool:
    return safetensors_files.holds(directory / file.name, file.tensors)


def _tensors_of(made: ConvertedFile) -> Callable[[IO[bytes]], object]:
    return lambda file: safetensors_files.write(file, made.tensors, made.pieces)


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is there complete or not at all, whatever happens."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some volumes can't sync a directory
        _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one worker at a time write a directory, where the volume has locks.

    Where it has none, two may write the same files. Each uses temporary names and renames complete
    files, so the copy is right whichever comes last.
    """
    with directory.with_name(f"{directory.name}.lock").open("ab") as lock:
        locked = _locked(lock, directory.name)
        if locked:
            for part in directory.glob(".*.part"):  # of a worker that was ended
                part.unlink(missing_ok=True)
        yield


def _locked(lock: IO[bytes], name: str) -> bool:
    waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                logger.info("waiting for another worker that converts %s", name)
            waiting = True
            time.sleep(_WAIT_S)
        except OSError as error:
            logger.debug("%s can't be locked: %s", name, error)
            return False
        else:
            return True


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what the system says of the volume into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in room.FULL:
            raise NoPlaceError(room.full(directory)) from error
        raise NoPlaceError(room.not_writable(directory, error.strerror)) from error
