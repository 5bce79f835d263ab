"""Run every command and program that the documents show.

    python -m tools.docs_check                    every document
    python -m tools.docs_check docs/runpod.md     one

Runpod's hosts are replaced by a local one (docs_services.py) and `.venv/bin/python` by this
interpreter; nothing else is. What can't run here is listed in NOT_RUN with the reason, and only
parsed. TypeScript is type-checked and run if npm can install the compiler.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.docs_services import Services, all_services
from tools.documents import DOCUMENTS, ROOT, Block, blocks, commands

# A command that matches is only parsed.
NOT_RUN = {
    r"(\w+=\S+ )?docker (buildx|run) ": "needs a container engine",
    r"make (test|lint)$": "is what the project's own checks run",
    r"make view$|\S+ client\.py view ": "serves until it is ended, and the viewer's tests run it",
    r"\S+ start\.py$": "is running while the other commands are",
    r"\S+ (start|model_loader)\.py .*--model_id": "downloads a model",
    r"pip install |attribution_client ": "is for an environment of the client's own",
}
# Curl ends with 0 on an error's status; a program in the documents stands for itself.
SHELL_PRELUDE = 'curl() { command curl --fail-with-body --silent --show-error "$@"; }\n'
# What a program takes as given, by a word of it.
PYTHON_PRELUDES = {
    "from attribution import": "import model_loader, settings\n"
    "model = model_loader.load(settings.get_settings()).model\n",
}
LIMIT_S = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a block: `failure` is its output if it failed, `note` what was not run."""

    block: Block
    seconds: float
    note: str = ""
    failure: str | None = None


def reason_not_to_run(command: str) -> str | None:
    """Why a command is only parsed, if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def check(block: Block, services: Services) -> Outcome:
    """Run a block."""
    started = time.perf_counter()
    runner = {"sh": _shell, "python": _python, "typescript": _typescript}[block.language]
    note = ""
    try:
        note = runner(services.localized(block.text), services)
        failure = None
    except subprocess.CalledProcessError as error:
        failure = error.stdout.strip() or str(error)
    except (SyntaxError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    return Outcome(block, time.perf_counter() - started, note, failure)


def _shell(text: str, services: Services) -> str:
    notes, script = [], SHELL_PRELUDE
    for command in commands(text):
        why = reason_not_to_run(command)
        if why is None:
            script += _with_this_interpreter(command) + "\n"
        else:
            notes.append(f"{command}: {why}")
    _run(["bash", "-euo", "pipefail", "-c", script], services)
    return "; ".join(notes)


def _with_this_interpreter(command: str) -> str:
    """The command with this interpreter's packages, which are neither installed nor looked for."""
    folder = Path(sys.executable).parent
    make = f"make BIN={folder} --old-file=.venv/.runtime --old-file=.venv/.dev "
    return command.replace(".venv/bin/", f"{folder}/").replace("make ", make)


def _python(text: str, services: Services) -> str:
    preludes = [prelude for word, prelude in PYTHON_PRELUDES.items() if word in text]
    _run([sys.executable, "-c", "".join(preludes) + text], services)
    return ""


def _typescript(text: str, services: Services) -> str:
    if shutil.which("npm") is None:
        return "npm is not installed: not run"
    project = ROOT / "out" / "typescript"
    project.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "tools" / "typescript").iterdir():
        shutil.copy(path, project)
    if not (project / "node_modules" / "typescript").exists():
        _run(["npm", "ci", "--no-audit", "--no-fund"], services, cwd=project)
    (project / "program.ts").write_text(text)
    _run(["node_modules/.bin/tsc", "--project", "."], services, cwd=project)
    _run(["node", "program.js"], services, cwd=project)
    return ""


def _run(command: list[str], services: Services, cwd: Path = ROOT) -> None:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed; with what it printed.
        subprocess.TimeoutExpired: it didn't end; whatever it started is ended.
    """
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=services.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command, printed)


def main(documents: list[str]) -> int:
    found = [block for document in documents or DOCUMENTS for block in blocks(document)]
    programs = [block for block in found if block.language in {"sh", "python", "typescript"}]
    failed = 0
    with tempfile.TemporaryDirectory() as folder, all_services(Path(folder)) as services:
        for block in programs:
            outcome = check(block, services)
            state = "ok" if outcome.failure is None else "FAILED"
            line = f"{state:6} {block.place:24} {block.language:10} {outcome.seconds:5.1f} s"
            print(line, flush=True)
            for note in outcome.note.split("; ") if outcome.note else ():
                print(f"       only parsed: {note}")
            if outcome.failure is not None:
                failed += 1
                print(outcome.failure)
    print(f"{len(programs) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
