"""The index of a batch: a line a row of the prompts' file, as CSV and, with pyarrow, Parquet."""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from remote.batch.folder import GRAPHS, BatchFolder, Record
from remote.batch.prompt_files import PromptRow
from remote.download import replacing

NAME = "index.csv"
PARQUET_NAME = "index.parquet"

# Each column with its type in Parquet. A cell without a value is empty, or null.
COLUMNS: Mapping[str, str] = {
    "line": "int64",
    "name": "string",
    "prompt": "string",
    "state": "string",  # done, failed or missing
    "error": "string",  # of a failed row: code, colon, sentence
    "file": "string",  # of the graph, in the batch's folder
    "url": "string",  # of a graph that was uploaded and not downloaded
    "model": "string",  # `scan` of the graph
    "transcoders": "string",  # its set
    "prediction": "string",
    "probability": "double",
    "predictions": "string",  # the likeliest, as JSON: [[token, probability], …]
    "replacement_score": "double",
    "completeness_score": "double",
    "tokens": "int64",
    "nodes": "int64",
    "features": "int64",
    "links": "int64",
    "seconds": "double",  # from the sending of the job to its output
    "job_id": "string",
}


def write_index(
    folder: BatchFolder, rows: Sequence[PromptRow], records: Mapping[str, Record]
) -> list[Path]:
    """Write the index anew and return its files: CSV, and Parquet where pyarrow is installed."""
    lines = [_line(row, records.get(row.name)) for row in rows]
    kept = list(dict.fromkeys(name for row in rows for name in row.kept))
    names = [*COLUMNS, *(_free(name) for name in kept)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(lines)
    path = folder.path / NAME
    with replacing(path) as file:
        file.write(text.getvalue().encode())
    if importlib.util.find_spec("pyarrow") is None:
        (folder.path / PARQUET_NAME).unlink(missing_ok=True)  # it would be of an earlier run
        return [path]
    return [path, _write_parquet(folder.path / PARQUET_NAME, names, lines)]


def _write_parquet(path: Path, names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    types = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
    schema = pa.schema([(name, types[COLUMNS.get(name, "string")]) for name in names])
    table = pa.Table.from_pylist([dict(line) for line in lines], schema)
    with replacing(path) as file:
        pa.parquet.write_table(table, file)
    return path


def _line(row: PromptRow, record: Record | None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "line": row.line,
        "name": row.name,
        "prompt": row.prompt,
        "state": "missing" if record is None or record.state == "sent" else record.state,
        **{_free(name): value for name, value in row.kept.items()},
    }
    if record is None:
        return line
    line |= {"job_id": record.job_id, "seconds": record.seconds, "url": record.url}
    if record.state == "failed":
        line["error"] = f"{record.code}: {record.error}"
    if record.state == "done" and record.url is None:
        line["file"] = f"{GRAPHS}/{row.name}.json"
    if record.summary is not None:
        line |= record.summary.model_dump(exclude={"predictions"})
        found = record.summary.predictions
        if found:
            pairs = [[prediction.token, prediction.probability] for prediction in found]
            line |= {"prediction": found[0].token, "probability": found[0].probability}
            line["predictions"] = orjson.dumps(pairs).decode()
    return line


def _free(name: str) -> str:
    """The name of a kept column, which may not be the name of one of the index's own."""
    return f"{name}_kept" if name in COLUMNS else name
