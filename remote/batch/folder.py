"""The folder of a batch: what is kept of each row, so that the next run does only what is missing.

    runs/graphs/NAME.json   a finished graph
    runs/rows/NAME.json     what is known of the row: a `Record`
    runs/index.csv          a line a row (remote/batch/index.py)
    runs/.lock              held by the client that works on the batch

Each file is in place only once it is whole. A graph is put there before its record says so, and a
graph without a record counts as done: a client may be killed at any moment.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from remote.download import replacing
from remote.errors import WrongFile
from remote.graphs.document import LOGIT, GraphDocument
from remote.graphs.features import features_of, predicted_token

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

GRAPHS = "graphs"
_LARGEST_RECORD_BYTES = 1_000_000
_MOST_PREDICTIONS = 5
_LONGEST_TOKEN = 1_000

_log = logging.getLogger(__name__)


def graph_files(path: Path) -> list[Path]:
    """A graph's file itself, or the files of the graphs in the folder of a batch.

    Raises:
        WrongFile: it is a folder without any.
    """
    if not path.is_dir():
        return [path]
    found = sorted((path / GRAPHS).glob("[!.]*.json"))
    if not found:
        raise WrongFile(f"{path}: no folder of a batch that has graphs, they are in {GRAPHS}/")
    return found


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Prediction(_Kept):
    token: str
    probability: float


class Summary(_Kept):
    """What the index says of a graph. A receipt of an upload has the first three alone."""

    nodes: int
    links: int
    tokens: int
    model: str | None = None
    transcoders: str | None = None
    features: int | None = None
    replacement_score: float | None = None
    completeness_score: float | None = None
    predictions: list[Prediction] = []

    @classmethod
    def of(cls, graph: GraphDocument) -> Self:
        logits = [node for node in graph.nodes if node.feature_type == LOGIT]
        logits.sort(key=lambda node: -node.token_prob)
        scores = graph.metadata.graph_scores
        return cls(
            nodes=len(graph.nodes),
            links=len(graph.links),
            tokens=len(graph.metadata.prompt_tokens),
            model=graph.metadata.scan[:_LONGEST_TOKEN],
            transcoders=(graph.metadata.info.transcoder_set or "")[:_LONGEST_TOKEN] or None,
            features=len(features_of(graph.nodes)),
            replacement_score=scores.replacement_score,
            completeness_score=scores.completeness_score,
            predictions=[
                Prediction(
                    token=predicted_token(node)[:_LONGEST_TOKEN], probability=node.token_prob
                )
                for node in logits[:_MOST_PREDICTIONS]
            ],
        )


class Record(_Kept):
    """What is known of a row.

    A job that is `sent` is Runpod's: its output is collected by its id, from the endpoint that
    `server` names.
    """

    state: Literal["sent", "done", "failed"]
    job_id: str | None = None
    server: str = ""
    seconds: float | None = None
    code: str = ""
    error: str = ""
    url: str | None = None  # of an uploaded graph
    summary: Summary | None = None


class BatchFolder:
    """Reads and writes the files of a batch. Rows may be written from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def graph_path(self, name: str) -> Path:
        return self.path / GRAPHS / f"{name}.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other clients away, and remove what a killed one left half written.

        Raises:
            WrongFile: another client works on the batch.
        """
        for folder in (self.path / GRAPHS, self.path / "rows"):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            self._take(lock)
            for part in [*self.path.glob(".*.part"), *self.path.glob("*/.*.part")]:
                part.unlink(missing_ok=True)
            yield

    def _take(self, lock: IO[str]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongFile(f"{self.path}: another client works on this batch") from None
        except OSError:  # some network file systems have no locks
            _log.debug("no lock can be taken in %s", self.path)

    def other_graphs(self, names: Iterable[str]) -> int:
        """How many graphs there are besides those of these rows, as an earlier run made them."""
        known = {self.graph_path(name) for name in names}
        return len(set((self.path / GRAPHS).glob("[!.]*.json")) - known)

    def records(self, names: Iterable[str]) -> dict[str, Record]:
        """What is known of these rows. One that is to be done from the beginning is left out."""
        found = {name: self._record(name) for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def _record(self, name: str) -> Record | None:
        record = self._read(name)
        graph = self.graph_path(name)
        if graph.exists() and (record is None or record.state != "done"):
            return self._adopted(name, graph, record)
        if record is not None and record.state == "done" and not (graph.exists() or record.url):
            return None
        return record

    def _read(self, name: str) -> Record | None:
        path = self._record_path(name)
        try:
            if path.stat().st_size > _LARGEST_RECORD_BYTES:
                return None
            return Record.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):  # as if the row had never been sent
            return None

    def _adopted(self, name: str, graph: Path, before: Record | None) -> Record | None:
        """The record of a graph that was put in place by a client which was killed then."""
        try:
            document = GraphDocument.model_validate_json(graph.read_bytes())
        except ValidationError:  # somebody has changed it
            return before
        job_id = None if before is None else before.job_id
        record = Record(state="done", job_id=job_id, summary=Summary.of(document))
        self.write(name, record)
        return record

    def write(self, name: str, record: Record) -> None:
        with replacing(self._record_path(name)) as file:
            file.write(record.model_dump_json(exclude_defaults=True).encode())

    def write_graph(self, name: str, graph: dict[str, Any]) -> None:
        content = orjson.dumps(graph)
        with replacing(self.graph_path(name)) as file:
            file.write(content)

    def forget(self, name: str) -> None:
        """The row is as if it had never been sent."""
        self._record_path(name).unlink(missing_ok=True)

    def _record_path(self, name: str) -> Path:
        return self.path / "rows" / f"{name}.json"
