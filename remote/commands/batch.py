"""`client.py batch`: a file of prompts in, a folder of graphs and their index out."""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console

from remote.batch.display import BatchDisplay
from remote.batch.folder import BatchFolder, Record
from remote.batch.index import PARQUET_NAME, write_index
from remote.batch.prompt_files import PromptRow, read_prompts
from remote.batch.running import JOBS_ON_RUNPOD, Batch
from remote.commands.connecting import connect
from remote.errors import RowsFailed
from remote.terminal.text import line


def run(args: Namespace, out: Console, err: Console) -> None:
    """Do what is missing of a batch, write its index, and say what there is.

    Raises:
        WrongFile: the prompts or the folder can't be used. Nothing was sent.
        RowsFailed: some rows failed; the others are done.
        Unreachable, NotAllowed, WrongTarget, OSError, Interrupted: as `Batch.run` does. What was
            done until then is kept, and in the index.
    """
    rows = read_prompts(args.prompts, args.job, args.keep)
    folder = BatchFolder(args.out)
    with folder.held():
        known = folder.records(row.name for row in rows)
        todo = [row for row in rows if _is_to_do(known.get(row.name), args.retry_failed)]
        try:
            if todo:
                _do(todo, known, folder, args, err, total=len({row.name for row in rows}))
        finally:
            records = folder.records(row.name for row in rows)
            _print_index(folder, rows, records, out)
    _raise_for_failures(records)


def _do(
    todo: Sequence[PromptRow],
    known: Mapping[str, Record],
    folder: BatchFolder,
    args: Namespace,
    err: Console,
    *,
    total: int,
) -> None:
    states = [record.state for record in known.values()]
    failed = 0 if args.retry_failed else states.count("failed")
    in_flight = args.in_flight or (1 if args.endpoint is None else JOBS_ON_RUNPOD)
    batch = Batch(folder, lambda: connect(args), known, in_flight=in_flight, timeout_s=args.timeout)
    with BatchDisplay(err, total=total, done=states.count("done"), failed=failed) as display:
        batch.run(todo, display)


def _is_to_do(record: Record | None, retry_failed: bool) -> bool:
    if record is None or record.state == "sent":
        return True
    return retry_failed and record.state == "failed"


def _print_index(
    folder: BatchFolder, rows: Sequence[PromptRow], records: Mapping[str, Record], out: Console
) -> None:
    files = write_index(folder, rows, records)
    states = [record.state for record in records.values()]
    names = {row.name for row in rows}
    done, failed = states.count("done"), states.count("failed")
    out.print(f"rows    {len(rows)}, with {len(names)} different jobs", soft_wrap=True)
    out.print(f"done    {done}, {failed} failed, {len(names) - done - failed} missing")
    _print_models(records, out)
    others = folder.other_graphs(names)
    if others:
        graphs = "1 graph in graphs/ is" if others == 1 else f"{others} graphs in graphs/ are"
        words = f"besides {graphs} of no row of this file; compare and circuit read them too"
        out.print(words, soft_wrap=True)
    out.print(f"index   {line(', '.join(map(str, files)))}", soft_wrap=True)
    if len(files) == 1:
        out.print(f"        no {PARQUET_NAME}: it needs `pip install pyarrow`", soft_wrap=True)


def _print_models(records: Mapping[str, Record], out: Console) -> None:
    """The model and the set of the graphs. There are two where two workers were asked."""
    summaries = [record.summary for record in records.values() if record.summary is not None]
    counts = Counter((found.model, found.transcoders) for found in summaries if found.model)
    words = [
        f"{model}{f' with {transcoders}' if transcoders else ''}"
        + (f" ({count})" if len(counts) > 1 else "")
        for (model, transcoders), count in counts.items()
    ]
    if words:
        name = "model " if len(words) == 1 else "models"
        out.print(f"{name}  {line(', '.join(words))}", soft_wrap=True)
    if len(words) > 1:
        out.print("        features of one are none of another's", soft_wrap=True)


def _raise_for_failures(records: Mapping[str, Record]) -> None:
    failed = [record for record in records.values() if record.state == "failed"]
    if failed:
        count = "1 row" if len(failed) == 1 else f"{len(failed)} rows"
        raise RowsFailed(
            f"{count} of {len(records)} failed, the first with {failed[0].code}: "
            f"{failed[0].error}; the index has each, and --retry-failed does them again"
        )
