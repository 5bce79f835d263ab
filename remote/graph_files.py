"""circuit-tracer's own file of a graph, `format: "pt"`: to the disk, and what to do with it.

The file is a pickle. The client never reads more of it than its first bytes.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from remote.connection import OnFile
from remote.download import replacing
from remote.jobs import OnProgress, Progress
from remote.terminal_text import line, size

FORMAT = "pt"
SUFFIX = ".pt"
_ZIP = b"PK\x03\x04"  # torch's files are uncompressed zip archives


def wants_file(job: Mapping[str, Any]) -> bool:
    """Whether a job's answer is to be a file, and not JSON."""
    return job.get("format") == FORMAT and job.get("signed_url") is None


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of torch's, as far as its beginning tells."""
    with path.open("rb") as file:
        return begins_as_torch_s(file.read(len(_ZIP)))


def begins_as_torch_s(content: bytes) -> bool:
    return content.startswith(_ZIP)


def taking_to(place: Callable[[str], Path], on_progress: OnProgress) -> OnFile:
    """What writes a file that comes, and returns its path. It is in place once it is whole.

    Args:
        place: called with the name that the server gives the file; returns its path here.
    """

    def take(name: str, pieces: Iterator[bytes]) -> Path:
        path, n_bytes = place(name), 0
        with replacing(path) as file:
            for piece in pieces:
                file.write(piece)
                n_bytes += len(piece)
                on_progress(Progress("download", f"{n_bytes / 1e6:.1f} MB"))
        return path

    return take


def print_file(console: Console, path: Path) -> None:
    """What the file is, and how it is opened."""
    name, n_bytes = line(str(path)), size(path.stat().st_size)
    console.print(
        f"\nfile    {name} ({n_bytes})"
        "\n        circuit-tracer's own, of the graph before pruning"
        f'\nopen    circuit_tracer.graph.Graph.from_pt("{name}")',
        soft_wrap=True,
    )
