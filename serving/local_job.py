"""The job of `python handler.py` without Runpod, checked before a model is loaded for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from contract.closest import closest
from contract.json_text import NotJson, is_file_name, read_json
from errors import WorkerError
from schemas import GenerateGraphRequest, parse_request
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
_NO_PLACE = (
    'format is "pt", a file, and a local run writes JSON; pass signed_url to have the file '
    "uploaded, or start start.py and ask it with client.py graph --format pt"
)


def wanted(settings: Settings) -> bool:
    """Whether the SDK will run one local job: no job queue is set, and no API is asked for."""
    return settings.runpod_webhook_get_job is None and "--rp_serve_api" not in sys.argv


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(f"error  {message}")


def check(arguments: Sequence[str], *, may_lack_job: bool = False) -> None:
    """Read the job of `--test_input`, or else of `test_input.json`, as the SDK will.

    Args:
        may_lack_job: don't mind that there is neither: what the start says matters more.

    Raises:
        SystemExit: with one line that says what is wrong and what was probably meant.
    """
    parser = _Parser(prog="handler.py", description=_DESCRIPTION)
    for option, words in _SDK_OPTIONS.items():
        parser.add_argument(option, help=words, metavar="VALUE")
    for flag, words in _SDK_FLAGS.items():
        parser.add_argument(flag, help=words, action="store_true")
    known, others = parser.parse_known_args(arguments)
    if others:
        raise SystemExit(f"error  {_unexpected(others[0])}")
    given: str | None = known.test_input
    if given is not None:
        fault = _fault_of("--test_input", given)
    else:
        fault = None if may_lack_job and not _FILE.exists() else _fault_of_file()
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
        return f"there is no {_FILE} here; give a job with --test_input '{_EXAMPLE}'"
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
        request = parse_request(job["input"])
    except WorkerError as error:
        return f"{where}: {error}"
    if isinstance(request, GenerateGraphRequest) and request.signed_url is None:
        return f"{where}: invalid_input: {_NO_PLACE}" if request.format == "pt" else None
    return None
