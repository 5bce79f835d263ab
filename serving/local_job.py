"""The job of `python handler.py` without Runpod, checked before a model is loaded for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.closest import closest
from contract.json_text import NotJson, is_file_name, read_json
from errors import WorkerError
from schemas import parse_request
from settings import Settings

_FILE = Path("test_input.json")
# What the SDK takes. It ignores all other arguments.
_SDK_OPTIONS = {
    "--test_input": "the job to run, as JSON, instead of that in test_input.json",
    "--rp_log_level": "ERROR, WARN, INFO or DEBUG",
    "--rp_api_port": "of the local API (8000)",
    "--rp_api_concurrency": "of the local API; one process serves the model",
    "--rp_api_host": "of the local API (localhost)",
}
_SDK_FLAGS = {
    "--rp_serve_api": "serve Runpod's API locally",
    "--rp_debugger": "the SDK's debugger",
}
_OPTIONS = (*_SDK_OPTIONS, *_SDK_FLAGS)
_DESCRIPTION = "Serve jobs on Runpod; elsewhere run one job and print a summary."
_EXAMPLE = '{"input": {"prompt": "Michael Jordan joue au"}}'


def wanted(settings: Settings) -> bool:
    """Whether the SDK will run one local job: no job queue is set, and no API is asked for."""
    return settings.runpod_webhook_get_job is None and "--rp_serve_api" not in sys.argv


def check(arguments: Sequence[str]) -> None:
    """Read the job of `--test_input`, or else of `test_input.json`, as the SDK will.

    Raises:
        SystemExit: with one line that says what is wrong and what was probably meant.
    """
    parser = argparse.ArgumentParser(prog="handler.py", description=_DESCRIPTION)
    for option, words in _SDK_OPTIONS.items():
        parser.add_argument(option, help=words, metavar="VALUE")
    for flag, words in _SDK_FLAGS.items():
        parser.add_argument(flag, help=words, action="store_true")
    known, others = parser.parse_known_args(arguments)
    if others:
        raise SystemExit(f"error  {_unexpected(others[0])}")
    given: str | None = known.test_input
    fault = _fault_of("--test_input", given) if given else _fault_of_file()
    if fault is not None:
        raise SystemExit(f"error  {fault}")


def _unexpected(argument: str) -> str:
    """What is wrong with an argument that the SDK would ignore without a word."""
    name = argument.partition("=")[0][:60]
    if not name.startswith("-"):
        return f"an argument is unexpected; the job is given as --test_input '{_EXAMPLE}'"
    close = closest(name.replace("-", "_"), {o.replace("-", "_") for o in _OPTIONS})
    hint = "" if close is None else f"; did you mean --{close.lstrip('_')}?"
    return f"there is no option {name}{hint}"


def _fault_of_file() -> str | None:
    try:
        text = _FILE.read_bytes()
    except FileNotFoundError:
        return None  # the SDK says so, once the start has said what else is wrong
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
