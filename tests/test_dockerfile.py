"""The image holds everything that the worker imports."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.demo_worker import ROOT

COPIES = re.findall(r"^COPY (?!--from)(\S+) (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)


def copy_as_the_image_does(destination: Path) -> None:
    for source, target in COPIES:
        for path in ROOT.glob(source):
            place = destination / (path.name if target == "./" else target)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place)


def test_the_copied_files_answer_a_job_on_their_own(tmp_path):
    copy_as_the_image_does(tmp_path)
    job = '{"input": {"action": "generate-graph", "prompt": "Rafael Nadal juega al"}}'
    done = subprocess.run(
        [sys.executable, "-u", "handler.py", "--test_input", job],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '" tenis"' in done.stdout
