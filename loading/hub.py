"""Downloads from the Hugging Face hub into a cache, at one commit, with errors in sentences.

The hub's client downloads (plain HTTP or Xet) and resumes what was interrupted. The cache's `refs`
name a commit only once every file needed is there, so that an interrupted download is never taken
for a whole one.
"""

from __future__ import annotations

import errno
import glob
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import requests
import tenacity
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from loading import UnsupportedArchitectureError, WeightsError, room
from loading.needs import Needs
from loading.references import Reference, download_folder

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30
_FILES_AT_ONCE = 4
_LOGGED_EVERY_S = 30.0
# Configuration and tokenizers come before weights: a cache that holds the weights then holds all of
# them, also those whose absence nothing else would show.
_SMALL_BYTES = 50_000_000
_HINTS = "run `python model_loader.py prefetch` where it can be reached"


class UnreachableError(WeightsError):
    """The hub can't be asked: offline mode, no network, or the hub itself is down."""


class HubFile(NamedTuple):
    size: int  # bytes
    blob: str  # its name among the cache's blobs


class Listing(NamedTuple):
    """What the hub has of a repository at a commit."""

    reference: Reference
    commit: str
    files: Mapping[str, HubFile]  # by path in the repository

    @property
    def top(self) -> str:
        """What paths in the repository have before those in the reference's folder."""
        return f"{self.reference.path}/" if self.reference.path else ""

    @property
    def names(self) -> list[str]:
        """The files of the reference's folder, by their paths in it."""
        return [name.removeprefix(self.top) for name in self.files if name.startswith(self.top)]


def download(reference: Reference, needs: Needs, cache: Path, token: str | None) -> Path:
    """Download the files needed of a repository's folder that a cache doesn't hold yet.

    The revision is resolved to a commit once; every file is that commit's.

    Returns:
        The cache's folder of the commit.

    Raises:
        UnreachableError: the hub doesn't answer, or stopped to; what has arrived is kept.
        WeightsError: there is no such repository, revision or file, access is refused, or the disk
            is too small.
        UnsupportedArchitectureError: the needs refuse what is described.
    """
    try:
        hub = _listing(reference, token)
        logger.info("%s is at commit %s on the hub", reference, hub.commit)
        commit = download_folder(cache, reference.repository) / "snapshots" / hub.commit
        _fetch(hub, needs.describing(hub.names), cache, token)
        _fetch(hub, needs.files(hub.names, commit / reference.path), cache, token)
        missing = needs.missing(commit / reference.path)
        if missing:
            raise WeightsError(f"{reference} has no {missing[0]} on the hub: name another")
        _record(hub, cache)
    except (WeightsError, UnsupportedArchitectureError):
        raise
    except Exception as error:
        raise _explanation(error, reference, token, cache) from error
    return commit


def names(reference: Reference, token: str | None) -> list[str]:
    """The files that the hub has of a repository's folder, by their paths in the folder.

    Raises:
        UnreachableError: the hub doesn't answer.
        WeightsError: there is no such repository or revision, or access is refused.
    """
    try:
        return _listing(reference, token).names
    except Exception as error:
        raise _explanation(error, reference, token, Path()) from error


def _listing(reference: Reference, token: str | None) -> Listing:
    info = _retried(
        HfApi().model_info,
        reference.repository,
        revision=reference.revision,
        timeout=_TIMEOUT_S,
        files_metadata=True,
        token=token,
    )
    files = {
        file.rfilename: HubFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or []
    }
    return Listing(reference, info.sha or reference.revision, files)


def _fetch(hub: Listing, wanted: Iterable[str], cache: Path, token: str | None) -> None:
    """Download files of the reference's folder that the cache doesn't hold yet."""
    names = [hub.top + name for name in wanted]
    for name in names:
        if name not in hub.files:
            raise WeightsError(
                f"{hub.reference.repository} has no {name} at {hub.reference.revision}: name a "
                "repository, folder or revision that has it"
            )
    folder = download_folder(cache, hub.reference.repository)
    absent = _absent(hub, names, folder)
    if not absent:
        return
    blobs = {folder / "blobs" / hub.files[name].blob: hub.files[name].size for name in absent}
    needed = sum(blobs.values()) - _arrived(blobs)
    if shortage := room.shortage(str(hub.reference), needed, cache):
        raise WeightsError(shortage)
    if not sys.stderr.isatty():
        disable_progress_bars()  # lines in the log instead
    with _progress_logged(str(hub.reference), blobs):
        for is_large in (False, True):
            group = [n for n in absent if (hub.files[n].size > _SMALL_BYTES) == is_large]
            if group:
                _retried(_download, hub, group, cache, token)


def _download(hub: Listing, names: list[str], cache: Path, token: str | None) -> None:
    snapshot_download(
        hub.reference.repository,
        revision=hub.commit,
        cache_dir=cache,
        token=token,
        allow_patterns=[glob.escape(name) for name in names],
        max_workers=_FILES_AT_ONCE,
    )
    # Where the hub doesn't answer, the client returns the folder as it is, without an error.
    if absent := _absent(hub, names, download_folder(cache, hub.reference.repository)):
        raise ConnectionError(f"{absent[0]} did not come")


def _absent(hub: Listing, names: Sequence[str], folder: Path) -> list[str]:
    commit = folder / "snapshots" / hub.commit
    return [name for name in names if not (commit / name).exists()]


def _record(hub: Listing, cache: Path) -> None:
    """Note in the cache which commit the revision is, once every file needed is there."""
    if hub.reference.revision == hub.commit:
        return
    ref = download_folder(cache, hub.reference.repository) / "refs" / hub.reference.revision
    # Other workers on the same volume read the old one or the new one, never half of one.
    written = ref.with_name(f"{ref.name}.{uuid4().hex}")
    ref.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(hub.commit)
    written.replace(ref)


@contextmanager
def _progress_logged(name: str, blobs: Mapping[Path, int]) -> Iterator[None]:
    """Log at the start, at the end and every 30 s of the block how much of some files is here.

    Args:
        name: what is downloaded.
        blobs: bytes of each file when whole; until then `<file>.incomplete` holds what there is.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_log, args=(name, blobs, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _log(name: str, blobs: Mapping[Path, int], ended: threading.Event) -> None:
    total = sum(blobs.values()) / 1e9
    before, started = _arrived(blobs), time.monotonic()
    logger.info("downloading %s: %.2f of %.2f GB are here", name, before / 1e9, total)
    has_ended = False
    while not has_ended:
        has_ended = ended.wait(_LOGGED_EVERY_S)
        now, seconds = _arrived(blobs), time.monotonic() - started
        logger.info(
            "downloading %s: %.2f of %.2f GB, %.0f MB/s, %s %.1f s",
            name,
            now / 1e9,
            total,
            (now - before) / seconds / 1e6,
            "ended after" if has_ended else "for",
            seconds,
        )


def _arrived(blobs: Mapping[Path, int]) -> int:
    """Bytes of these files that are on the disk."""
    return sum(min(size, _bytes_of(blob)) for blob, size in blobs.items())


def _bytes_of(blob: Path) -> int:
    for file in (blob, Path(f"{blob}.incomplete")):
        try:
            status = file.stat()
        except OSError:
            continue
        # A file that was given its length before its contents has fewer blocks than bytes.
        blocks = status.st_blocks * 512
        return min(status.st_size, blocks) if file != blob else status.st_size
    return 0


def _is_temporary(error: BaseException) -> bool:
    """Whether the next try, which resumes, may succeed."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _is_temporary(error.__cause__)
    if isinstance(error, requests.HTTPError):
        status = 0 if error.response is None else error.response.status_code
        return status >= 500 or status == 429  # too many requests
    return isinstance(
        error,
        requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError
        | ConnectionError  # Xet's
        | TimeoutError,
    )


_retried = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_temporary),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)


def _explanation(
    error: BaseException, reference: Reference, token: str | None, cache: Path
) -> WeightsError:
    """What the client raised, as a sentence that says what to do."""
    repository = reference.repository
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, GatedRepoError):
        owner = "a token of that account" if token is None else "the token of an account that has"
        return WeightsError(
            f"{repository} is gated: accept its terms at {constants.ENDPOINT}/{repository} and set "
            f"HF_TOKEN to {owner}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return WeightsError(
            f"{repository} is not on {constants.ENDPOINT}: check its name, and HF_TOKEN if it is "
            "private"
        )
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(
            f"{repository} has no revision {reference.revision!r}: put one of its branches, tags "
            "or commits after the @"
        )
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explanation(error.__cause__, reference, token, cache)
    if isinstance(error, EntryNotFoundError):
        return WeightsError(f"{repository} lost a file meanwhile: start again ({error})")
    # Xet reports the system's error as text.
    if number in room.FULL or "No space left" in str(error):
        return WeightsError(room.full(cache))
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(f"HF_HUB_OFFLINE is set: unset it, or {_HINTS}")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if not _is_temporary(error):
            return WeightsError(
                f"{constants.ENDPOINT} refuses {repository} with status {status}: check HF_TOKEN"
            )
        return UnreachableError(f"{constants.ENDPOINT} answers with status {status}: start again")
    if isinstance(error, PermissionError) or number in (errno.EROFS, errno.ENOTDIR):
        return WeightsError(room.not_writable(cache))
    if _is_temporary(error):
        kind = type(error).__name__
        return UnreachableError(f"{constants.ENDPOINT} can't be reached ({kind}): {_HINTS}")
    return WeightsError(f"{repository} can't be downloaded: {type(error).__name__}: {error}")
