"""Where a job's graph is written, and under what name."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import orjson

from remote.download import download, replacing
from remote.graphs.document import GraphDocument
from remote.terminal.display import Display
from remote.torch_file import FORMAT, SUFFIX
from schemas import UploadReceipt

OUTPUT_DIRECTORY = Path("out")
_LONGEST_NAME = 200
# Windows takes such a name for a device, whatever its ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def write_graph(args: Namespace, output: dict[str, Any], display: Display) -> Path | None:
    """Write a graph to its file, after a download when it was uploaded; return the file.

    None when the output is no graph, or `--json` prints it instead.
    """
    if not hasattr(args, "output"):  # of an action that makes no graph
        return None
    if "nodes" in output:
        if args.json and args.output is None:
            return None
        slug = GraphDocument.model_validate(output).metadata.slug
        path: Path = args.output or OUTPUT_DIRECTORY / f"{_file_name(slug)}.json"
        content = orjson.dumps(output)
        with replacing(path) as file:
            file.write(content)
        return path
    if "sha256" in output and args.download_url is not None:
        receipt = UploadReceipt.model_validate(output)
        stored = receipt.url.rpartition("/")[2].removesuffix(".gz")
        name = torch_file_name(stored) if output.get("format") == FORMAT else _file_name(stored)
        path = args.output or OUTPUT_DIRECTORY / name
        download(receipt, args.download_url, path, on_progress=display)
        return path
    return None


def _file_name(text: str) -> str:
    """A name of a file in this folder, of a text that came from the worker."""
    name = re.sub(r"[^\w.-]+", "-", text).lstrip(".").encode()[:_LONGEST_NAME]
    plain = name.decode(errors="ignore").rstrip(".") or "graph"
    return f"graph-{plain}" if _DEVICE.match(plain) else plain


def torch_file_name(text: str) -> str:
    """The same for circuit-tracer's own file of a graph."""
    return f"{_file_name(text.removesuffix(SUFFIX))}{SUFFIX}"
