"""The job of `python handler.py` without Runpod, checked before a model is loaded for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.json_text import NotJson, is_file_name, read_json
from errors import WorkerError
from schemas import parse_request
from settings import Settings

_FILE = Path("test_input.json")
_EXAMPLE = '{"input": {"prompt": "Michael Jordan joue au"}}'


def wanted(settings: Settings) -> bool:
    """Whether the SDK will run one local job: no job queue is set, and no API is asked for."""
    return settings.runpod_webhook_get_job is None and "--rp_serve_api" not in sys.argv


def check(arguments: Sequence[str]) -> None:
    """Read the job of `--test_input`, or else of `test_input.json`, as the SDK will.

    Raises:
        SystemExit: with one line that says what is wrong and what was probably meant.
    """
    parser = argparse.ArgumentParser(prog="handler.py", add_help=False)
    parser.add_argument("--test_input")
    given: str | None = parser.parse_known_args(arguments)[0].test_input
    fault = _fault_of("--test_input", given) if given else _fault_of_file()
    if fault is not None:
        raise SystemExit(f"error  {fault}")


def _fault_of_file() -> str | None:
    try:
        text = _FILE.read_bytes()
    except FileNotFoundError:
        return f"there is no {_FILE} in this folder; give the job as --test_input '{_EXAMPLE}'"
    except OSError as error:
        return f"{_FILE}: {error.strerror}"
    return _fault_of(str(_FILE), text)


def _fault_of(where: str, text: str | bytes) -> str | None:
    """What is wrong with a job, in one sentence."""
    try:
        job = read_json(text)
    except NotJson as error:
        if isinstance(text, str) and is_file_name(text):
            name = text.strip().removeprefix("@")
            return (
                f"{where} takes the job itself as JSON, and {name!r} is a file's name; write "
                f'{where} "$(cat {name})"'
            )
        return f"{where} is no JSON: {error}"
    if not isinstance(job, dict):
        return f"{where}: a job is an object, such as {_EXAMPLE}"
    if job.get("input") is None:
        fields = "; put its fields into one" if job.keys() - {"id", "input"} else ""
        return f"{where}: the job has no input{fields}, such as {_EXAMPLE}"
    try:
        parse_request(job["input"])
    except WorkerError as error:
        return f"{where}: {error}"
    return None
