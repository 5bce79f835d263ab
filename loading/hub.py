"""Downloads from the Hugging Face hub into a cache: resumed, checked for room, told in a sentence.

The client's own downloads do the work (plain HTTP or Xet); the cache's `refs` name a commit only
once everything asked for is there, so that an interrupted download is never taken for a whole one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import requests
import tenacity
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from loading import WeightsError, room
from loading.download_progress import shown
from loading.references import Reference, download_folder

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30
_FILES_AT_ONCE = 4
# Configuration and tokenizers come before weights: a repository without access is told at once,
# and where the weights are, the rest is too.
_SMALL_BYTES = 50_000_000
_HINTS = "run `python model_loader.py prefetch` where it can be reached"


class UnreachableError(WeightsError):
    """The hub can't be asked: offline mode, no network, or the hub itself is down."""


class HubFile(NamedTuple):
    size: int  # bytes
    blob: str  # its name among the cache's blobs


class Listing(NamedTuple):
    """What the hub has of a repository at a revision."""

    reference: Reference
    commit: str
    files: Mapping[str, HubFile]  # by path in the repository


def listing(reference: Reference, token: str | None) -> Listing:
    """Ask the hub for a repository's files.

    Raises:
        UnreachableError: the hub doesn't answer.
        WeightsError: there is no such repository or revision for this token.
    """
    with _explained(reference, token):
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


def fetch(hub: Listing, names: list[str], cache: Path, token: str | None) -> Path:
    """Download files of a repository that a cache doesn't hold yet, and resume those begun.

    Args:
        names: paths in the repository.

    Returns:
        The cache's folder of the commit.

    Raises:
        UnreachableError: the hub stopped answering; what is there is kept.
        WeightsError: a file isn't there, access is refused, or the disk is too small.
    """
    for name in names:
        if name not in hub.files:
            raise WeightsError(
                f"{hub.reference.repository} has no {name} at {hub.reference.revision}: check the "
                "folder and the revision of its name"
            )
    folder = download_folder(cache, hub.reference.repository)
    snapshot = folder / "snapshots" / hub.commit
    with _explained(hub.reference, token, cache):
        absent = [name for name in names if not (snapshot / name).exists()]
        if not absent:
            return snapshot
        _check_room(hub, absent, folder, cache)
        disable_progress_bars()  # one bar for all files instead
        blobs = {folder / "blobs" / hub.files[name].blob: hub.files[name].size for name in absent}
        small = [name for name in absent if hub.files[name].size <= _SMALL_BYTES]
        large = [name for name in absent if hub.files[name].size > _SMALL_BYTES]
        with shown(str(hub.reference), blobs):
            for group in (small, large):
                _download(hub, group, cache, token)
    return snapshot


def record(hub: Listing, cache: Path) -> None:
    """Note in a cache which commit a revision is: everything needed of it is there.

    Raises:
        WeightsError: the cache can't be written, or the disk is full.
    """
    if hub.reference.revision == hub.commit:
        return
    ref = download_folder(cache, hub.reference.repository) / "refs" / hub.reference.revision
    # Other workers on the same volume read the old one or the new one, never half of one.
    written = ref.with_name(f"{ref.name}.{uuid4().hex}")
    with _explained(hub.reference, None, cache):
        ref.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(hub.commit)
        written.replace(ref)


def _download(hub: Listing, names: list[str], cache: Path, token: str | None) -> None:
    def one(name: str) -> None:
        _retried(
            hf_hub_download,
            hub.reference.repository,
            name,
            revision=hub.commit,
            cache_dir=cache,
            token=token,
        )

    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        list(pool.map(one, names))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _is_passing(error: BaseException) -> bool:
    """Whether a fault may be gone on the next try, which resumes."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _is_passing(error.__cause__)
    if isinstance(error, HfHubHTTPError):
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
    retry=tenacity.retry_if_exception(_is_passing),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)


def _check_room(hub: Listing, names: list[str], folder: Path, cache: Path) -> None:
    needed = 0
    for size, blob in {hub.files[name] for name in names}:
        file = folder / "blobs" / blob
        begun = file if file.exists() else Path(f"{file}.incomplete")
        needed += size - (begun.stat().st_size if begun.exists() else 0)
    if said := room.shortage(str(hub.reference), needed, cache):
        raise WeightsError(said)


@contextmanager
def _explained(
    reference: Reference, token: str | None, cache: Path | None = None
) -> Iterator[None]:
    """Turn what the client raises into a sentence that says what to do."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise _explanation(error, reference, token, cache) from error


def _explanation(
    error: BaseException, reference: Reference, token: str | None, cache: Path | None
) -> WeightsError:
    repository = reference.repository
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
    if _is_full(error):
        return WeightsError(room.full(cache))
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(f"HF_HUB_OFFLINE is set: unset it, or {_HINTS}")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if not _is_passing(error):
            return WeightsError(
                f"{constants.ENDPOINT} refuses {repository} with status {status}: check HF_TOKEN"
            )
        return UnreachableError(f"{constants.ENDPOINT} answers with status {status}: start again")
    if isinstance(error, PermissionError) or _has_number(error, errno.EROFS, errno.ENOTDIR):
        return WeightsError(room.not_writable(cache))
    if _is_passing(error):
        kind = type(error).__name__
        return UnreachableError(f"{constants.ENDPOINT} can't be reached ({kind}): {_HINTS}")
    return WeightsError(f"{repository} can't be downloaded: {type(error).__name__}: {error}")


def _is_full(error: BaseException) -> bool:
    # Xet reports what the system said as text.
    return _has_number(error, *room.FULL) or "No space left" in str(error)


def _has_number(error: BaseException, *numbers: int) -> bool:
    return isinstance(error, OSError) and error.errno in numbers
